"""The compose files that the documentation shows pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.lint.linted import HOST

from sharedvol.lint import Options, Severity, lint

PLACE = Path(__file__).parents[2] / "docs" / "examples" / "compose"
PROJECTS = [
    ["compose.yaml"],
    ["compose.yaml", "compose.prod.yaml"],
    ["compose.yaml", "compose.prod.yaml", "compose.r.yaml"],
    ["compose.yaml", "compose.prod.yaml", "compose.sticky.yaml"],
    ["compose.yaml", "compose.override.yaml"],
]


@pytest.mark.parametrize("files", PROJECTS, ids="+".join)
def test_the_examples_pass(files: list[str]) -> None:
    if not PLACE.is_dir():
        pytest.skip("the examples are not part of this tree")
    scripts = [str(PLACE / "roll")] if (PLACE / "roll").exists() else []
    report = lint([str(PLACE / name) for name in files], Options(scripts, reader="files", host_memory=HOST))
    assert not report.at_least(Severity.warning)
    assert not report.notes
