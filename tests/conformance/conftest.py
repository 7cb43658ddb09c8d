"""The option ``--adapter``, and the running adapters that all tests of a process share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before they are imported: so that a check that fails shows the values it compared.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("*_rules.py")), "kernel_view")

from kinds import Cast, Kind, Pool, all_kinds, given_command  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only known where this directory is named on the command line; the environment's variable always is."""
    parser.addoption("--adapter", default=None, help="the command of an adapter: its conformance is tested, no other's")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With an adapter that is given, only the rules: not the suite's own tests."""
    if given_command(config):
        here = Path(__file__).parent
        others = [item for item in items if item.path.parent == here and item.path.name != "test_conformance.py"]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def kinds(pytestconfig: pytest.Config) -> dict[str, Kind]:
    """All kinds of adapters, by name."""
    return all_kinds(pytestconfig)


@pytest.fixture(scope="session")
def pool(kinds: dict[str, Kind]) -> Iterator[Pool]:
    """The running adapters."""
    made = Pool(kinds)
    yield made
    made.close()


@pytest.fixture
def cast(pool: Pool, tmp_path: Path) -> Callable[[tuple[str, ...]], Cast]:
    """Adapters of the named kinds, in a directory that every program has to quote."""
    directory = tmp_path / "a böx"
    directory.mkdir()
    return lambda seating: Cast(pool, directory, seating)
