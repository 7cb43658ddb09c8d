"""Sidecars of the release before and of this one on one spool: each finishes what the other began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.soak.releases import Release
from support.torture.isolated import isolated
from support.torture.layouts import EVERYTHING, Directories, sample
from support.upgrade.release_sweeps import FEW, Sidecars, kill_and_recover, work_beside

Pair = tuple[Release, Release]
Points = Callable[[str, int], None]

LIMIT = 7200.0 if EVERYTHING else 300.0
"""Seconds after which a sweep is given up. Nothing is measured by it."""

pytestmark = pytest.mark.timeout(LIMIT + 10)

layouts = pytest.mark.parametrize("layout", ["linked", "copied"])


@layouts
def test_a_killed_sidecar_is_replaced_by_the_other_release(
    torture: Directories, tmp_path: Path, pair: Pair, layout: str, points: Points
) -> None:
    chosen = sample(61, f"{pair[0].name} {layout}")
    sidecars = Sidecars(tmp_path / "clock")
    kills = isolated(lambda: kill_and_recover(sidecars, torture.scene(layout, sources=FEW), *pair, chosen), LIMIT)
    assert (kills + 1) * chosen.step > 60
    points("kill points between releases", kills)


@layouts
def test_both_releases_work_at_once(
    torture: Directories, tmp_path: Path, pair: Pair, layout: str, points: Points
) -> None:
    chosen = sample(97, f"{pair[0].name} {layout} at once")
    sidecars = Sidecars(tmp_path / "clock")
    stops = isolated(lambda: work_beside(sidecars, torture.scene(layout, sources=FEW), *pair, chosen), LIMIT)
    assert (stops + 1) * chosen.step > 60
    points("stops between releases", stops)
