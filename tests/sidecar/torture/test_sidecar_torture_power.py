"""The power is cut at each point: what was synced, or told as collected, is there, and final names are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.torture.filesystems import LOG_FLUSHED, LOG_LOST, LoopFileSystem
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, exhaustive, sample, timeout
from support.torture.power import cut_power_everywhere
from support.torture.scene import Scene
from support.torture.sweeps import Sample

Points = Callable[[str, int], None]

pytestmark = timeout

JOURNALS = ["journal-lost", "journal-flushed"]
journals = pytest.mark.parametrize("journal", [LOG_LOST, LOG_FLUSHED], ids=JOURNALS)


@journals
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("synced", [True, False], ids=["synced-writers", "unsynced-writers"])
def test_on_one_file_system(tmp_path: Path, kind: str, journal: int, synced: bool, points: Points) -> None:
    def sweep(chosen: Sample) -> int:
        system = LoopFileSystem(kind, tmp_path / kind)
        scene = Scene(system.path, system.path, synced=synced)
        return cut_power_everywhere(scene, [system], journal, chosen)

    _count(sweep, f"{kind} {journal} {synced}", points)


@pytest.mark.parametrize("cut", ["destination", "spool", "both"])
@pytest.mark.parametrize("kinds", [("ext4", "xfs"), ("xfs", "ext4")], ids="-".join)
@pytest.mark.parametrize("journal", [LOG_LOST, pytest.param(LOG_FLUSHED, marks=exhaustive)], ids=JOURNALS)
def test_across_file_systems(tmp_path: Path, kinds: tuple[str, str], cut: str, journal: int, points: Points) -> None:
    def sweep(chosen: Sample) -> int:
        spool, destination = (LoopFileSystem(kind, tmp_path / kind) for kind in kinds)
        systems = [spool] * (cut != "destination") + [destination] * (cut != "spool")
        return cut_power_everywhere(Scene(spool.path, destination.path, synced=True), systems, journal, chosen)

    _count(sweep, f"{kinds} {journal} {cut}", points)


def _count(sweep: Callable[[Sample], int], name: str, points: Points) -> None:
    chosen = sample(83, name)
    cuts = isolated(lambda: sweep(chosen), LIMIT)
    assert (cuts + 1) * chosen.step > 150
    points("power cuts", cuts)
