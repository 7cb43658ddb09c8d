"""Die at the N-th effectful call of a mover: a shim over what it calls, installed in a forked child."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sharedvol_sidecar.fs.content as contents
import sharedvol_sidecar.fs.directory as directories
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.errors import DestinationError
from support.processes import Child
from support.sidecar.volume import Volume

CALLS = [
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "fsync",
    "sendfile",
    "write",
    "close",
    "fchmod",
    "fchown",
    "utime",
]
COLLIDING = "{kind}/{base}"
OLD = "was here before"


class Violation(AssertionError):
    """A file was lost, doubled, overwritten or seen unfinished."""


class LibC:
    """The C library, with and without its newer call, and counted."""

    def __init__(self, real: Any, wrap: Callable[[Any], Any] = lambda call: call, renameat2: bool = True) -> None:
        self.syncfs = wrap(real.syncfs)
        if renameat2:
            self.renameat2 = wrap(real.renameat2)


def die_at(number: int, after: bool) -> None:
    """SIGKILL this process before, or after, the ``number``-th effectful call from now, the first being 0."""
    left = number

    def counted(call: Callable[..., Any], effectful: Callable[..., bool] = lambda *a, **o: True) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal left
            if not effectful(*args, **options):
                return call(*args, **options)
            left -= 1
            dying = left < 0
            if dying and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **options)
            finally:
                if dying:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counting

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    os.open = counted(os.open, lambda path, flags, *a, **o: flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY))
    fcntl.fcntl = counted(fcntl.fcntl, lambda fd, command, *a: command == fcntl.F_SETLEASE)
    directories._libc = LibC(directories._libc, counted, hasattr(directories._libc, "renameat2"))  # type: ignore


class Scene:
    """A small spool in which names collide, made anew for each kill.

    Args:
        spool: below which spools are made.
        collected: below which destinations are made: on the same file system, or not.
        patch: changes the mover before it runs, in the killed one and in those that come after.
    """

    def __init__(self, spool: Path, collected: Path, patch: Callable[[], object] = lambda: None) -> None:
        self._spool, self._collected, self.patch = spool, collected, patch
        self.kills = 0

    @contextlib.contextmanager
    def volume(self) -> Iterator[tuple[Volume, Counter[str]]]:
        top = Path(tempfile.mkdtemp(dir=self._spool))
        there = Path(tempfile.mkdtemp(dir=self._collected))
        try:
            volume = Volume(top / "spool", there / "collected", template=COLLIDING)
            contents = {
                "c1/results/a.json": "of c1 " * 9,
                "c2/results/a.json": "of c2 " * 9,
                "c3/results/a.json": "of c1 " * 9,  # the same content, and another file
                "c1/results/deep/er/b.json": "deep",
                "results/job_7_c9.json": "flat",
                "logs/c9_20260131.log": "",
            }
            for path, content in contents.items():
                volume.write(path, content)
            (volume.collected / "results").mkdir()
            (volume.collected / "results" / "a.json").write_text(OLD)
            yield volume, Counter([*contents.values(), OLD])
        finally:
            shutil.rmtree(top)
            shutil.rmtree(there)

    def killed_at(self, volume: Volume, number: int, after: bool, prepare: Callable[[], object] | None = None) -> bool:
        """Run one pass in a child that is killed there. False if it ended before."""
        child = Child(lambda _: self._pass(volume, number, after, prepare))
        status = child.wait()
        child.kill()  # reaped already: tells the ``with`` that its status is no failure
        with child:
            pass
        if status == 0:
            return False
        if status != -signal.SIGKILL:
            raise Violation(f"the mover failed by itself at call {number}: status {status}")
        self.kills += 1
        return True

    def _pass(self, volume: Volume, number: int, after: bool, prepare: Callable[[], object] | None) -> None:
        contents.CHUNK = 16  # several calls for one copy, so that it can be cut
        self.patch()
        (prepare or (lambda: None))()
        die_at(number, after)
        with contextlib.suppress(DestinationError):
            volume.one_pass()


def assert_whole(volume: Volume, expected: Counter[str], where: str) -> None:
    """At any moment: what has a final name is one of the files, whole, and none is overwritten."""
    wrong = {path: text for path, text in volume.files().items() if text not in expected}
    if wrong:
        raise Violation(f"{where}: half-written: {wrong}")
    if (volume.collected / "results" / "a.json").read_text() != OLD:
        raise Violation(f"{where}: overwritten")


def assert_all_once(volume: Volume, expected: Counter[str], where: str) -> None:
    """At the end: every file once, nothing else, and nothing on the way."""
    assert_whole(volume, expected, where)
    bag = volume.bag()
    if bag != expected:
        raise Violation(f"{where}: lost {expected - bag}, doubled {bag - expected}: {sorted(volume.files())}")
    left = [*volume.waiting(), *volume.claims(), *volume.staged()]
    if left:
        raise Violation(f"{where}: left behind {left}")


def every_kill_point(
    scene: Scene,
    *,
    after: bool,
    second_mover: bool = False,
    start: int = 0,
    step: int = 1,
    prepare: Callable[[], object] | None = None,
) -> int:
    """Kill a mover at each of its calls from ``start``, let another finish, and look. Returns the number of calls."""
    number = start
    while True:
        where = f"killed {'after' if after else 'before'} call {number}"
        with scene.volume() as (volume, expected):
            living: Collector | None = volume.collector() if second_mover else None
            try:
                killed = scene.killed_at(volume, number, after, prepare)
                assert_whole(volume, expected, where)
                if living is not None:
                    for _ in range(3):
                        living.run_pass()
                        assert_whole(volume, expected, where)
            finally:
                if living is not None:
                    living.close()
            volume.drain()
            assert_all_once(volume, expected, where)
        if not killed:
            return number
        number += step


def every_second_kill(scene: Scene, *, first_step: int, second_step: int) -> None:
    """Kill a mover at a call, and the one that recovers at a call, then let a third finish."""
    for first in range(0, 10_000, first_step):
        for second in range(0, 10_000, second_step):
            where = f"killed at call {first}, the next at call {second}"
            with scene.volume() as (volume, expected):
                if not scene.killed_at(volume, first, after=False):
                    return
                again = scene.killed_at(volume, second, after=True)
                assert_whole(volume, expected, where)
                volume.drain()
                assert_all_once(volume, expected, where)
            if not again:
                break


def forbid_links_of_claims() -> None:
    """As fs.protected_hardlinks does for another user's files: what cannot be linked is copied."""
    real = os.link

    def link(source: str, target: str, *, src_dir_fd: int = -1, dst_dir_fd: int = -1, **options: Any) -> None:
        if src_dir_fd >= 0 and "/claims/" in os.readlink(f"/proc/self/fd/{src_dir_fd}"):
            if os.path.lexists(f"/proc/self/fd/{dst_dir_fd}/{target}"):
                raise FileExistsError(errno.EEXIST, "exists")  # asked first, in the kernel too
            raise PermissionError(errno.EPERM, "not permitted")
        if src_dir_fd < 0:
            real(source, target, dst_dir_fd=dst_dir_fd, **options)
        else:
            real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)

    os.link = link  # type: ignore


def forbid_renameat2() -> None:
    """As a file system or a C library without it."""
    directories._libc = LibC(directories._libc, renameat2=False)  # type: ignore
