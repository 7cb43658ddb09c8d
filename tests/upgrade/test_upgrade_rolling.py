"""Replicas and sidecars of both releases at once, killed and replaced at random: a rolling update and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.soak.releases import HERE, Release
from support.soak.run import Plan, Report, run
from support.torture.isolated import isolated

LIMIT = 600.0
"""Seconds after which it is given up. Nothing is measured by it."""

SEED = int(os.environ.get("SHAREDVOL_SOAK_SEED") or 1)

KNOWN = ("doubled: appended.", "doubled: shell.", "doubled: handler.")
"""A sidecar of the release before reads once a pass which logs others follow, and may collect such a log twice."""

pytestmark = pytest.mark.timeout(LIMIT + 20)


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_no_record_is_lost_while_releases_alternate(tmp_path: Path, releases: dict[str, Release], mode: str) -> None:
    for name in ("outside", "mounts"):
        (tmp_path / name).mkdir()
    plan = Plan(mode, SEED, releases=(HERE, releases["before"]))
    report: Report = isolated(lambda: run(plan, tmp_path / "outside", tmp_path / "mounts"), LIMIT)
    print(f"SHAREDVOL_SOAK_SEED={SEED}\n{report}")
    assert [text for text in report.problems if not text.startswith(KNOWN)] == []
    assert {path.name.rpartition(".")[2] for path in (tmp_path / "outside" / "logs").glob("sidecar*")} == {
        "here",
        "before",
    }
