"""The current directory may be the spool: no module that a replica puts there is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.sidecar.volume import Volume

from sharedvol_sidecar.collect.collector import HELP_AFTER

ROOT = Path(__file__).parents[3]
PRODUCT = [path for top in ("sharedvol", "sidecar", "bench", "scripts", "docs") for path in (ROOT / top).rglob("*.py")]
PLANTED = ("json", "click", "dataclasses", "sitecustomize", "usercustomize", "sqlite3", "structlog", "zlib")


@pytest.mark.parametrize(
    "command",
    [(str(Path(sys.executable).with_name("sharedvol-sidecar")),), (sys.executable, "-m", "sharedvol_sidecar")],
    ids=["script", "module"],
)
def test_a_module_in_the_spool_is_not_imported_by_the_sidecar_or_its_helper(
    volume: Volume, tmp_path: Path, command: tuple[str, ...]
) -> None:
    count = HELP_AFTER + 100
    for number in range(count):
        volume.write(f"evil/results/{number}")
    ran = tmp_path / "ran"
    for module in PLANTED:
        volume.write(f"{module}.py", f"open({str(ran)!r}, 'a').write({module!r})\nraise SystemExit(1)\n")
    done = subprocess.run(
        [*command, "once", "--from", ".", "--to", volume.collected, "--quiet", "0", "--workers", "2", "--json"],
        cwd=volume.spool,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sum(volume.bag().values()) == count


def test_every_python_that_is_started_ignores_the_current_directory() -> None:
    assert {f"{path}:{line}" for path in PRODUCT for line in unsafe_starts(path.read_text())} == set()


def test_a_start_without_the_option_is_found() -> None:
    bad = 'run([*before, sys.executable, "-m", "x"])\nrun((sys.executable, *rest))\nprint(sys.executable)\n'
    assert unsafe_starts(bad) == {1, 2, 3}
    assert unsafe_starts('run([sys.executable, "-P", "-m", "x"])') == set()


def unsafe_starts(text: str) -> set[int]:
    """The lines that mention ``sys.executable`` without a safe option as the argument that follows it."""
    tree = ast.parse(text)
    safe = {
        id(one)
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple)
        for one, after in zip(node.elts, node.elts[1:], strict=False)
        if isinstance(after, ast.Constant) and after.value in ("-P", "-I")
    }
    return {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable" and id(node) not in safe
    }
