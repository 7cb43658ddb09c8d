"""What README and docs show is run, and what they list is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("sharedvol ", "sharedvol-sidecar ", "mkdir ")
URL = "mysql://app@db/shop"  # in examples: the server of the tests stands for it
PYTHON = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]
SHELL = [
    pytest.param(lines, id=page.name)
    for page in PAGES
    if (lines := [line.strip() for line in page.read_text().splitlines() if line.startswith("    ")])
    and (lines := [line for line in lines if line.startswith(COMMANDS)])
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("results", "logs", "locks", "migrations"):
        (tmp_path / name).mkdir()
    (tmp_path / "migrations" / "001_orders.sql").write_text("CREATE TABLE orders (id INT PRIMARY KEY);\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def url(_server_of: Callable[[str], Server]) -> str:
    """A fresh schema for ``shop``."""
    server = _server_of("mariadb")
    return server.url(server.create_database())


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code: str, place: Path, request: pytest.FixtureRequest) -> None:
    if URL in code:
        code = code.replace(URL, request.getfixturevalue("url"))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=place)


@pytest.mark.parametrize("lines", SHELL)
def test_shell_examples_run(lines: list[str], place: Path, request: pytest.FixtureRequest) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in lines:
        command = line.replace(URL, f"'{request.getfixturevalue('url')}'") if URL in line else line
        result = subprocess.run(
            command, shell=True, timeout=60, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert result.returncode == 0, (line, result.stderr)


def test_there_are_examples_to_run() -> None:
    assert len(PYTHON) >= 3
    assert len(SHELL) >= 2


def test_the_paths_shown_are_those_that_are_built() -> None:
    code = "from sharedvol import *; print(container_path('results', 'job_7.json'))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOSTNAME": "3f9c0d1e2b4a"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    assert shown in (ROOT / "README.md").read_text()
    assert shown in (ROOT / "docs" / "names.md").read_text()


def test_every_setting_is_documented() -> None:
    from sharedvol_sidecar.settings import Settings

    text = (ROOT / "docs" / "sidecar.md").read_text()
    for field in Settings.model_fields:
        assert f"`SHAREDVOL_{field.rstrip('_').upper()}`" in text
        assert f"`--{field.rstrip('_').replace('_', '-')}`" in text


def test_every_template_field_is_documented() -> None:
    from sharedvol_sidecar.template import FIELDS

    text = (ROOT / "docs" / "sidecar.md").read_text()
    assert all(f"`{field}`" in text for field in FIELDS)


def test_every_dependency_is_justified() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[\[>=]", name)[0] for name in wanted} - {"sharedvol"}
    assert {name for name in names if name.lower() not in page.lower()} == set()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_make_has_the_targets_that_the_readme_names() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    for target in ("demo", "test", "test-containers", "torture", "lint", "bench"):
        # With a virtual environment that is taken for ready, nothing is installed; -n only prints.
        result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


def test_every_exit_code_of_migrate_is_documented() -> None:
    from sharedvol import migrate_command

    page = (ROOT / "docs" / "migrations.md").read_text()
    names = [
        name for name, value in vars(migrate_command).items() if name.startswith("EXIT_") and value.__class__ is int
    ]
    codes = {getattr(migrate_command, name) for name in names}
    assert len(codes) == 7
    assert all(f"| {code} |" in page for code in codes)
    assert all(f"\n  {code} " in migrate_command.EXIT_CODES for code in codes)


def test_every_option_of_the_coordinator_is_documented_where_it_is_declared() -> None:
    import inspect

    from sharedvol import MigrationCoordinator

    options = [name for name in inspect.signature(MigrationCoordinator).parameters if name != "url_or_engine"]
    assert all(f"        {name}: " in str(MigrationCoordinator.__doc__) for name in options)
