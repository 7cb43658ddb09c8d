"""The suite's own test: an adapter that breaks a rule is seen, and there is one for every check."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import adapter
import pytest
from adapter import Adapter
from broken import FAULTS
from kinds import REFERENCES, Cast, Kind, Pool
from rules import RULES

BROKEN = str(Path(__file__).with_name("broken.py"))
CASES = [(fault, keys) for fault, (_, keys) in FAULTS.items() if keys]


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    command = (sys.executable, BROKEN, request.param)
    made = Pool({"broken": Kind(command, REFERENCES["python"].claims), "python": REFERENCES["python"]})
    yield made
    made.close()


def seats_of(key: str) -> Iterator[tuple[str, ...]]:
    """The broken one in every seat, and in each beside a good one."""
    number = len(RULES[key].needs)
    yield ("broken",) * number
    if number == 2:
        yield "broken", "python"
        yield "python", "broken"


@pytest.mark.parametrize("pool, keys", CASES, indirect=["pool"], ids=[fault for fault, _ in CASES])
def test_broken_adapter_is_seen(
    pool: Pool, keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "LIMIT", 2.0)  # some faults are that an answer never comes
    unseen = [key for key in keys if not any(sees(pool, key, seats, tmp_path) for seats in seats_of(key))]
    assert not unseen, f"in no seat was the broken adapter seen by {unseen}"


def sees(pool: Pool, key: str, seats: tuple[str, ...], tmp_path: Path) -> bool:
    directory = tmp_path / "-".join((key, *seats))
    directory.mkdir()
    try:
        with Cast(pool, directory, seats) as scene:
            RULES[key].check(scene, *scene.seats)
    except (AssertionError, OSError):
        return True
    return False


@pytest.mark.parametrize("pool", ["none"], indirect=True)
def test_harness_of_broken_adapters_breaks_nothing(pool: Pool, tmp_path: Path) -> None:
    with Cast(pool, tmp_path, ("broken", "python")) as scene:
        RULES["LOCK-1.exclusive"].check(scene, *scene.seats)


def test_every_check_has_a_fault_that_it_sees() -> None:
    assert set(RULES) == {key for _, keys in CASES for key in keys}


def test_silent_adapter_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LIMIT", 0.2)
    with Adapter(["sleep", "60"]) as silent, pytest.raises(adapter.Broken, match="did not answer"):
        silent.hello()


def test_ended_adapter_is_told_with_its_errors() -> None:
    with (
        Adapter(["sh", "-c", "echo no such thing >&2; exit 3"]) as ended,
        pytest.raises(adapter.Broken, match=r"no such thing|has ended"),
    ):
        ended.hello()
