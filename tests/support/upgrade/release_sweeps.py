"""A sidecar of one release is killed or stopped at points of a pass, and one of another release continues."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from support.soak.releases import Release
from support.torture.calls import EFFECTS
from support.torture.judge import Violation
from support.torture.scene import COLLIDING, Scene, Stand, killed, reap
from support.torture.sweeps import Sample, run_to
from support.torture.tracer import Traced, fork, run

_STEPS = frozenset(
    "rename renameat renameat2 link linkat unlink unlinkat mkdirat rmdir fsync fdatasync syncfs pwrite64 sendfile "
    "ftruncate".split()
)
CALLS = tuple(call for call in EFFECTS if call.name in _STEPS)
"""What changes a volume. Not close(2) and locks: the start of an interpreter has hundreds of those."""

FEW = {
    "c1/results/a.json": b"of c1 " * 9,
    "c2/results/a.json": b"of c2 " * 9,
    "c1/results/deep/er/b.json": b"deep",
    "logs/c9_20260131.log": b"",
}


class Sidecars:
    """Runs `once` of releases.

    Args:
        clock: an empty file, for `soak.sidecar`.
        arguments: settings.
    """

    def __init__(self, clock: Path, arguments: Sequence[str] = ()) -> None:
        clock.write_bytes(bytes(8))
        self._clock, self._arguments = clock, arguments

    def once(self, release: Release, stand: Stand) -> int:
        """Become that command. Returns never."""
        directories = ["--from", str(stand.spool), "--to", str(stand.collected), "--template", COLLIDING]
        shim = [str(os.getppid()), str(release.directory), str(self._clock)]
        settings = ["--quiet", "0", "--workers", "1", *self._arguments]
        command = [sys.executable, "-P", "-m", "support.soak.sidecar", *shim, "once", *directories, *settings]
        os.execve(command[0], command, release.environment())

    def traced(self, release: Release, stand: Stand) -> Traced:
        """The same, stopped before each of `CALLS`."""
        return Traced(partial(self.once, release, stand), stand.said, CALLS)

    def start(self, release: Release, stand: Stand) -> int:
        """The same, undisturbed. Returns its id."""
        return fork(partial(self.once, release, stand), stand.said)

    def recover(self, release: Release, stand: Stand, where: str) -> None:
        """The same to its end, after which everything is collected and nothing is on its way."""
        status = run(partial(self.once, release, stand), stand.said)
        stand.check_said(where)
        if status != 0:
            raise Violation(f"{where}: the recovery fails with status {status}: {stand.words()}")
        stand.check_end(where)

    def warm_up(self, releases: Sequence[Release], scene: Scene) -> None:
        """Compile what a release imports, so that every later run makes the same calls."""
        for release in releases:
            with scene.stand() as stand:
                self.recover(release, stand, "undisturbed")


def kill_and_recover(sidecars: Sidecars, scene: Scene, first: Release, second: Release, sample: Sample) -> int:
    """Kill a sidecar of the first release at points of a pass; one of the second recovers. Returns the kills."""
    sidecars.warm_up([first, second], scene)
    kills = 0
    for number in sample:
        with scene.stand() as stand:
            traced = sidecars.traced(first, stand)
            where = run_to(traced, number, f"{first.name} killed before")
            if where:
                traced.kill()
                kills += 1
                stand.check_moment(where)
            sidecars.recover(second, stand, where or "undisturbed")
            if not where:
                return kills
    raise AssertionError("endless")


def work_beside(sidecars: Sidecars, scene: Scene, first: Release, second: Release, sample: Sample) -> int:
    """Stop a sidecar of the first release at points of a pass while one of the second works. Returns the stops."""
    sidecars.warm_up([first, second], scene)
    stops = 0
    for number in sample:
        with scene.stand() as stand:
            traced = sidecars.traced(first, stand)
            where = run_to(traced, number, f"{first.name} stopped before")
            if not where:
                return stops
            stops += 1
            living = sidecars.start(second, stand)
            try:
                _wait_a_moment(living)
                while traced.next():
                    pass
                status = reap(living)
                living = 0
            finally:
                if living:
                    killed(living)
            stand.check_said(where)
            if status not in (0, 1):
                raise Violation(f"{where}: {second.name} ends with status {status}: {stand.words()}")
            stand.check_moment(where)
            sidecars.recover(first, stand, where)
    raise AssertionError("endless")


def _wait_a_moment(pid: int) -> None:
    """Let a process work until it ends, or waits for what the stopped one holds. Nothing is measured by it."""
    watch = os.pidfd_open(pid)
    try:
        select.select([watch], [], [], 2.0)
    finally:
        os.close(watch)
