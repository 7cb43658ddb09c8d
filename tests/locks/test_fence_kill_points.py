"""Holders killed at every step, the power cut behind any of them: no token is given twice, none goes back.

What a power cut takes is modelled: of a file what was not synced, of a directory the names that were not. Either may
have reached the disk by itself, so both outcomes are tried. A disk without syncs, and a reservation written in one
step, must be caught: else this could not fail.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child

from sharedvol import FileLock
from sharedvol.locks.file import linux, token_file

CALLS = ("open", "pwrite", "fchmod", "utime", "link", "unlink", "fsync", "fdatasync")
BOOTS = [f"{number:08}-0000-4000-8000-000000000000" for number in range(3)]
RESERVED = 3

Bug = Callable[[], object]


class Disk:
    """What a power cut would leave of a directory, kept beside it so that it outlives killed processes.

    Args:
        directory: where lock and token file are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._store = directory.with_suffix(".disk")
        (self._store / "content").mkdir(parents=True)
        (self._store / "names").mkdir()

    def watch(self) -> None:
        """From now on note what this process syncs."""
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._noting(getattr(os, name)))

    def cut_power(self) -> None:
        """Take away what was not synced."""
        for name in os.listdir(self.directory):
            (self.directory / name).unlink()
        for name in os.listdir(self._store / "names"):
            content = self._store / "content" / (self._store / "names" / name).read_text()
            # A name that reached the disk before its file's content: an empty file.
            (self.directory / name).write_bytes(content.read_bytes() if content.exists() else b"")

    def _noting(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def note(fd: int) -> None:
            real(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path == str(self.directory):
                shutil.rmtree(self._store / "names")
                (self._store / "names").mkdir()
                for name in os.listdir(path):
                    (self._store / "names" / name).write_text(str(os.stat(f"{path}/{name}").st_ino))
            else:
                info = os.stat(f"/proc/self/fd/{fd}")
                (self._store / "content" / str(info.st_ino)).write_bytes(Path(f"/proc/self/fd/{fd}").read_bytes())

        return note


def kill_at(number: int) -> None:
    """Die before the ``number``-th system call from here that changes something: so also behind the one before."""
    left = number

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return called

    for name in CALLS:
        setattr(os, name, around(getattr(os, name)))


def take(disk: Disk, boot: str, count: int = 1, *, kill: int | None = None, bug: Bug | None = None) -> Any:
    """The tokens that a process is given, under a boot; and whether it came to its end, if it was to be killed."""

    def work(connection: Connection) -> None:
        token_file.boot_id = lambda: boot
        token_file.RESERVED = RESERVED  # type: ignore[misc]
        disk.watch()
        if bug is not None:
            bug()
        if kill is not None:
            kill_at(kill)
        lock = FileLock(disk.directory / "a.lock", fenced=True)
        for _ in range(count):
            with lock:
                connection.send(lock.token)

    child = Child(work)
    status = child.wait()
    tokens = []
    try:
        while child.connection.poll(0):
            tokens.append(child.connection.recv())
    except EOFError:
        pass
    child.kill()  # reaped already: tells the ``with`` that its status is no failure
    with child:
        pass
    assert status == 0 or (kill is not None and status == -signal.SIGKILL)
    return tokens, status == 0


@contextmanager
def scene(kind: str) -> Iterator[tuple[Disk, list[int]]]:
    """A disk, and the tokens that were given on it."""
    top = Path(tempfile.mkdtemp())
    try:
        directory = top / "locks"
        directory.mkdir()
        disk, given = Disk(directory), []
        (directory / "a.lock").touch(0o666)
        fd = os.open(directory, os.O_RDONLY)
        disk._noting(os.fsync)(fd)
        os.close(fd)
        if kind != "first":
            given += take(disk, BOOTS[0], RESERVED + 1 if kind == "used up" else 2)[0]
        yield disk, given
    finally:
        shutil.rmtree(top)


def sweep(kind: str, later: int, cut: str, bug: Bug | None = None) -> int:
    """Kill a holder at each step; take ``later`` more; cut the power; take more. Returns the number of steps."""
    boot = BOOTS[1] if kind == "another boot" else BOOTS[0]
    for number in itertools.count():
        with scene(kind) as (disk, given):
            tokens, ended = take(disk, boot, 2, kill=number, bug=bug)
            given += tokens
            given += take(disk, boot, later, bug=bug)[0]
            if cut == "lost":
                disk.cut_power()
            given += take(disk, boot if cut == "none" else BOOTS[2], 2, bug=bug)[0]
            # The time, where nothing at all had reached the disk; else a step behind the other.
            assert given == sorted(set(given)), f"step {number}: {given}"
            left = [name for name in os.listdir(disk.directory) if name.startswith(".")]
            assert len(left) <= 1, "a killed process leaves its temporary file, and nobody else's"
            if ended:
                return number
    raise AssertionError("endless")


@pytest.mark.parametrize("cut", ["none", "lost", "kept"])
@pytest.mark.parametrize("kind", ["first", "used up", "another boot"])
def test_no_token_is_given_twice(kind: str, cut: str) -> None:
    assert sweep(kind, RESERVED - 1, cut) > (20 if kind == "first" else 8)


def no_sync() -> None:
    """The reservation is written and never synced."""
    os.fdatasync = lambda _: None


def one_step() -> None:
    """It is written with its boot at once: who is killed before the sync leaves one that the next believes."""

    def reserve(self: token_file.TokenFile, token: int) -> None:
        self._reserved = token + RESERVED
        self._tail = token_file._tail(self._reserved, self._boot)
        self._write(token, self._tail)
        os.fdatasync(self._kept.fd)  # type: ignore[arg-type]

    token_file.TokenFile._reserve = reserve  # type: ignore[method-assign]


def late_write() -> None:
    """The token is given before it is written."""
    real = token_file.TokenFile.next

    def give(self: token_file.TokenFile, *, calm: bool) -> int:
        self._kept.look()
        return int(os.pread(self._kept.fd, 37, 0)[18:]) + 1 if self._known[0] else real(self, calm=calm)  # type: ignore[arg-type]

    token_file.TokenFile.next = give  # type: ignore[method-assign]


@pytest.mark.parametrize("bug", [no_sync, one_step, late_write])
def test_what_is_wrong_is_caught(bug: Bug) -> None:
    with pytest.raises(AssertionError, match="step"):
        sweep("used up", RESERVED - 1, "lost", bug)


def test_what_a_killed_maker_leaves_is_cleaned_away(tmp_path: Path) -> None:
    """Its temporary file is one of `publish`, which `remove_stale_temporaries` knows."""
    from sharedvol import remove_stale_temporaries

    found = 0
    for number in range(20):
        with scene("first") as (disk, _):
            take(disk, BOOTS[0], kill=number)
            left = {name for name in os.listdir(disk.directory) if name.startswith(".")}
            assert {path.name for path in remove_stale_temporaries(disk.directory)} == left
            found += len(left)
    assert found > 3


def test_the_lock_is_free_behind_every_kill(tmp_path: Path) -> None:
    for number in range(0, 20, 4):
        with scene("used up") as (disk, _):
            take(disk, BOOTS[0], kill=number)
            fd = os.open(disk.directory / "a.lock", os.O_RDWR)
            assert linux.try_both(fd, "a.lock", False)
            os.close(fd)
