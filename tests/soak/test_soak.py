"""Replicas and sidecars under each kind of fault: nothing is lost or doubled. `make soak` does it for 30 minutes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.soak.places import MODES
from support.soak.run import Plan, Report, run
from support.soak.writers import KINDS
from support.torture.isolated import isolated

LIMIT = 600.0
"""Seconds after which a soak is given up. Nothing is measured by it."""

SEED = int(os.environ.get("SHAREDVOL_SOAK_SEED") or 1)

pytestmark = pytest.mark.timeout(LIMIT + 20)


@pytest.mark.parametrize(("mode", "number"), [(mode, number) for number, mode in enumerate(MODES)])
def test_every_acknowledged_record_is_there_once(tmp_path: Path, mode: str, number: int) -> None:
    """Each kind of disturbance happens in one of the modes, so that the three runs together take 45 seconds."""
    for name in ("outside", "mounts"):
        (tmp_path / name).mkdir()
    plan = Plan(mode, SEED, part=number, parts=len(MODES))
    report: Report = isolated(lambda: run(plan, tmp_path / "outside", tmp_path / "mounts"), LIMIT)
    print(f"SHAREDVOL_SOAK_SEED={SEED}\n{report}")
    assert report.problems == []
    assert all(report.acknowledged[kind] > 0 for kind in KINDS)
