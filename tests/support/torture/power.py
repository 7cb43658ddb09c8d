"""Cut the power at each point of a pass, bring the file systems back, and look what is on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from support.torture.filesystems import LoopFileSystem
from support.torture.judge import Violation, check_final
from support.torture.scene import Scene, Stand
from support.torture.sweeps import Sample
from support.torture.tracer import Traced


def cut_power_everywhere(scene: Scene, systems: Sequence[LoopFileSystem], journal: int, sample: Sample) -> int:
    """Cut the power of the file systems before each call of a pass, and after its end. Returns the number of cuts.

    Where the scene's writers synced their files, all must be there afterwards, and a run collects them. Else
    those that were still on their way may be lost or cut short, and only final names are judged.

    Args:
        scene: the volume, on these file systems or partly on one that survives.
        systems: which lose power, both at the same moment.
        journal: `LOG_FLUSHED` or `LOG_LOST`.
        sample: which points.
    """
    cuts = 0
    for number in sample:
        with scene.stand() as stand:
            traced = stand.traced()
            where = f"power cut before call {number}"
            ended = not all(traced.next() for _ in range(number + 1))
            if ended:
                where = "power cut after the end"
                stand.check_told(traced.status or 0, where)
            else:
                where = f"{where}, {traced.call}"
            _cut(systems, journal, traced, ended)
            cuts += 1
            _judge(stand, scene.synced, ended, where)
            if ended:
                return cuts
    raise AssertionError("endless")


def _cut(systems: Sequence[LoopFileSystem], journal: int, traced: Traced, ended: bool) -> None:
    for system in systems:
        system.cut_power(journal)
    if not ended:
        traced.kill()
    for system in systems:
        system.come_back()


def _judge(stand: Stand, synced: bool, ended: bool, where: str) -> None:
    if ended:
        # What was reported as collected is on the disk, whoever synced it.
        seen = stand.look()
        check_final(seen, stand.expected, where)
        missing = stand.look_missing()
        if missing:
            raise Violation(f"{where}: lost: {missing}")
        stand.recover(where)
        return
    if synced:
        stand.check_moment(where)
        stand.recover(where)
    else:
        check_final(stand.look(), stand.expected, where)
