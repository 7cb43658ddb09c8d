"""The compose files that the documentation shows pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from linted import HOST

from sharedvol.lint import Options, Severity, lint

PLACE = Path(__file__).parent.parent.parent / "docs" / "examples" / "compose"
# What a combination is about, or what is left out on a desk.
PROJECTS: list[tuple[list[str], set[str]]] = [
    (["compose.yaml"], set()),
    (["compose.yaml", "compose.prod.yaml"], set()),
    (["compose.yaml", "compose.prod.yaml", "compose.r.yaml"], set()),
    (["compose.yaml", "compose.prod.yaml", "compose.sticky.yaml"], {"SV060"}),
    (["compose.yaml", "compose.override.yaml"], {"SV052"}),
]


@pytest.mark.parametrize(("files", "meant"), PROJECTS, ids=lambda one: "+".join(one) if isinstance(one, list) else "")
def test_the_examples_pass(files: list[str], meant: set[str]) -> None:
    if not PLACE.is_dir():
        pytest.skip("the examples are not part of this tree")
    report = lint([str(PLACE / name) for name in files], Options(reader="files", host_memory=HOST))
    assert {one.rule.id for one in report.at_least(Severity.warning)} <= meant
    assert not report.notes
