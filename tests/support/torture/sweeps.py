"""Go through all points of a pass: kill it there, fail its calls there, let another mover work meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import select
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from support.torture.calls import EFFECTS, NAMES
from support.torture.judge import Violation
from support.torture.scene import Scene, killed, reap
from support.torture.tracer import Traced

FAULTS = ("ENOSPC", "EIO", "EDQUOT", "EXDEV", "ESTALE", "EACCES")

ANSWERED = frozenset(
    "rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat rmdir fsync fdatasync syncfs".split()
)
"""The calls that a network file system makes, and then loses the answer to."""

MEANWHILE = 0.25
"""Seconds that a living mover gets while the other is stopped, where it waits for a lock of that. Not measured."""


@dataclass(frozen=True)
class Sample:
    """Every ``step``-th point, from one that depends on the name, so that different scenes sample different ones.

    ``start`` more are passed over: those at which a mover only begins.
    """

    step: int = 1
    name: str = ""
    start: int = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start + zlib.crc32(self.name.encode()) % self.step, self.step)


def calls_of(scene: Scene) -> Counter[str]:
    """What a pass calls, by name: all its system calls, each known to the harness.

    Raises:
        Violation: one is not known, and may have an effect at which nobody would be killed.
    """
    with scene.stand() as stand:
        traced = Traced(stand.once, stand.said, calls=None)
        counts: Counter[int] = Counter()
        while traced.next():
            counts[traced.number] += 1
        unknown = [number for number in counts if number not in NAMES]
        if unknown:
            raise Violation(f"calls that the harness does not know, see torture/calls.py: {unknown}")
        stand.check_told(traced.status or 0, "undisturbed")
        stand.check_end("undisturbed")
        return Counter({NAMES[number]: count for number, count in counts.items()})


def effects_of(scene: Scene) -> list[str]:
    """The effectful calls of an undisturbed pass, in their order."""
    with scene.stand() as stand:
        traced = stand.traced()
        names = []
        while traced.next():
            names.append(traced.call)
        stand.check_end("undisturbed")
        return names


def kill_everywhere(scene: Scene, sample: Sample, *, every_call: bool = False) -> int:
    """Kill a mover before each of its calls; look; let another recover; look. Returns the number of kills.

    Args:
        scene: the volume.
        sample: which points.
        every_call: count the calls without effect too.
    """
    kills = 0
    for number in sample:
        with scene.stand() as stand:
            traced = Traced(stand.once, stand.said, None if every_call else EFFECTS)
            where = run_to(traced, number, "killed before")
            if where:
                traced.kill()
                kills += 1
                stand.check_moment(where)
            stand.recover(where or "undisturbed")
            if not where:
                return kills
    raise AssertionError("endless")


def kill_beside_another(scene: Scene, sample: Sample, *, dies: bool = True) -> int:
    """Stop a mover before each of its calls, let another work meanwhile, then kill it, or let it go on.

    Returns the number of points.
    """
    points = 0
    for number in sample:
        with scene.stand() as stand:
            traced = stand.traced()
            where = run_to(traced, number, f"beside another, {'killed' if dies else 'stopped'} before")
            if not where:
                stand.recover("undisturbed")
                return points
            points += 1
            living = stand.start()
            try:
                ended = _ends(living)
                if ended:
                    stand.check_moment(f"{where}, while it is stopped")
                if dies:
                    traced.kill()
                else:
                    while traced.next():
                        pass
                    stand.check_told(traced.status or 0, where) if ended else stand.check_said(where)
                status = reap(living)
                living = 0
            finally:
                if living:
                    killed(living)
            stand.check_said(where)
            if status not in (0, 1):
                raise Violation(f"{where}: the living mover ended with status {status}: {stand.words()}")
            stand.check_moment(where)
            stand.recover(where)
    raise AssertionError("endless")


def kill_the_recovery(scene: Scene, first: Sample, second: Sample) -> int:
    """Kill a mover at each point, and the one that recovers at each point, then let a third finish."""
    kills = 0
    for number in first:
        for again in second:
            with scene.stand() as stand:
                traced = stand.traced()
                where = run_to(traced, number, "killed before")
                if not where:
                    return kills
                traced.kill()
                traced = stand.traced()
                then = run_to(traced, again, f"{where}, the next one before")
                if then:
                    traced.kill()
                    kills += 1
                stand.check_moment(then or where)
                stand.recover(then or where)
            if not then:
                break
    raise AssertionError("endless")


def fail_everywhere(
    scene: Scene, sample: Sample, fault: str, *, lasting: bool = False, though_done: frozenset[str] = frozenset()
) -> int:
    """Let each call of the command fail, once or from there to its end; look; let another recover; look.

    Args:
        scene: the volume.
        sample: which points.
        fault: the error's name.
        lasting: every later call fails too.
        though_done: only these calls, and they are made: their answer is lost.

    Returns:
        The number of faults.
    """
    error, faults = getattr(errno, fault), 0
    for number in sample:
        with scene.stand() as stand:
            traced = Traced(stand.command, stand.said, hasty=True)
            what = f"{fault} {'from' if lasting else 'at'}{', though done,' if though_done else ''}"
            where = run_to(traced, number, what, fallible=True, only=though_done)
            if where:
                faults += 1
                (traced.fail_though_done if though_done else traced.fail)(error)
                while traced.next():
                    if lasting and traced.may_fail and (not though_done or traced.call in though_done):
                        (traced.fail_though_done if though_done else traced.fail)(error)
                status = traced.status
                assert status is not None
                stand.check_said(where)
                stand.check_moment(where)
                stand.check_told(status, where)
            stand.recover(where or "undisturbed")
            if not where:
                return faults
    raise AssertionError("endless")


def run_to(
    traced: Traced, number: int, what: str, *, fallible: bool = False, only: frozenset[str] = frozenset()
) -> str:
    """To the call with that number, from 0. Returns the words for it, or "" if it ended before.

    With ``fallible`` only calls that may fail are counted, with ``only`` none but these.
    """
    left = number
    while traced.next():
        left -= (not fallible or traced.may_fail) and (not only or traced.call in only)
        if left < 0:
            return f"{what} call {number}, {traced.call}"
    return ""


def _ends(pid: int) -> bool:
    """Whether a child ends without what another, stopped one has to give; it is not reaped."""
    watch = os.pidfd_open(pid)
    try:
        return bool(select.select([watch], [], [], MEANWHILE)[0])
    finally:
        os.close(watch)
