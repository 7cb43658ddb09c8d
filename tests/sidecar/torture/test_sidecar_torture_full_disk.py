"""A disk that is really full, from each call of a pass on: it is told, nothing is harmed, and room is all it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.torture.full import LOG, SOURCES, fill_everywhere, small
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, sample, timeout
from support.torture.scene import Scene

Points = Callable[[str, int], None]

pytestmark = timeout


@pytest.mark.parametrize("left", [0, 100_000], ids=["full", "room-for-some"])
@pytest.mark.parametrize("layout", ["linked", "copied"])
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_nothing_is_lost_or_doubled(tmp_path: Path, kind: str, layout: str, left: int, points: Points) -> None:
    def sweep() -> int:
        disk = small(kind, tmp_path / "disk")
        spool = disk if layout == "linked" else tmp_path
        return fill_everywhere(Scene(spool, disk, sources=SOURCES | LOG), disk, left, chosen)

    chosen = sample(131, f"{kind} {layout} {left}", thorough=3)
    times = isolated(sweep, LIMIT)
    assert (times + 1) * chosen.step > 150
    points("full disks", times)
