"""Replicas and sidecars under each kind of fault, once: nothing is lost or doubled. `make soak` does it for long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from soak.places import MODES
from soak.run import Plan, Report, run
from soak.writers import KINDS
from torture.isolated import isolated

LIMIT = 600.0
"""Seconds after which a soak is given up. Nothing is measured by it."""

SEED = int(os.environ.get("SHAREDVOL_SOAK_SEED") or 1)

pytestmark = pytest.mark.timeout(LIMIT + 20)


@pytest.mark.parametrize("mode", MODES)
def test_every_acknowledged_record_is_there_once(tmp_path: Path, mode: str) -> None:
    for name in ("outside", "mounts"):
        (tmp_path / name).mkdir()
    report: Report = isolated(lambda: run(Plan(mode, SEED), tmp_path / "outside", tmp_path / "mounts"), LIMIT)
    print(f"SHAREDVOL_SOAK_SEED={SEED}\n{report}")
    assert report.problems == []
    assert all(report.acknowledged[kind] > 0 for kind in KINDS)
