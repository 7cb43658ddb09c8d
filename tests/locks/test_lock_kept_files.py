"""Files that stay open beside a lock file count only while they are what their paths name."""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.processes import is_free, run_forked

from sharedvol import FileLock, LockLostError, LockTimeout
from sharedvol.locks.file import pinned as kept
from sharedvol.locks.file.pinned import PinnedDirectory


class Clocks:
    """The clocks that a `PinnedDirectory` sees, and the change time of the directory, in nanoseconds."""

    def __init__(self) -> None:
        self.changed = 1_000_000_000_123_456_789
        self.monotonic = 5_000_000_000


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    now, real = Clocks(), os.fstat

    def fstat(fd: int) -> Any:
        info = real(fd)
        return SimpleNamespace(st_ctime_ns=now.changed, st_dev=info.st_dev, st_ino=info.st_ino)

    monkeypatch.setattr(kept, "os", SimpleNamespace(**{**vars(os), "fstat": fstat}))
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic_ns=lambda: now.monotonic))
    return now


def is_calm(directory: PinnedDirectory) -> bool:
    """Ask, and look where that is to be done."""
    calm = directory.is_calm()
    if not calm:
        directory.looked()
    return calm


@pytest.mark.parametrize(("changed", "tick"), [(1_000_000_000_123_456_789, 0.1), (1_000_000_000_000_000_000, 3.0)])
def test_names_are_looked_at_once_more_when_the_tick_of_their_change_is_over(
    tmp_path: Path, clocks: Clocks, changed: int, tick: float
) -> None:
    directory, clocks.changed = PinnedDirectory(str(tmp_path)), changed
    for _ in range(3):
        assert not is_calm(directory)
    clocks.monotonic += int(tick * 1e9)
    assert not is_calm(directory)  # might be the very end of it
    clocks.monotonic += 1
    assert not is_calm(directory)  # what changed in that tick is seen now
    assert is_calm(directory)
    clocks.changed -= 3_600_000_000_000  # a change after the clock was set back is one, too
    assert not is_calm(directory)


def test_a_look_that_takes_long_does_not_make_it_calm(tmp_path: Path, clocks: Clocks) -> None:
    directory = PinnedDirectory(str(tmp_path))
    assert not directory.is_calm()
    clocks.monotonic += 60_000_000_000  # such as a sync between the look at one name and at the next
    directory.looked()
    assert not directory.is_calm()


def test_a_directory_that_was_replaced_is_not_calm(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "locks"
    path.mkdir()
    directory = PinnedDirectory(str(path))
    assert not is_calm(directory)
    clocks.monotonic += 60_000_000_000
    path.rename(tmp_path / "aside")
    path.mkdir()
    for _ in range(3):
        assert not is_calm(directory)
    clocks.monotonic += 60_000_000_000
    assert not is_calm(directory)
    assert is_calm(directory)


def calm(lock: FileLock, path: Path) -> None:
    """Use the lock until its directory is one that it trusts."""
    beside = None
    deadline = time.monotonic() + 60
    while beside is None or not beside._directory._calm:
        assert time.monotonic() < deadline
        with lock:
            hold = next(iter(lock._own.held.values()))
            beside = hold.beside
        time.sleep(0.01)


@pytest.mark.parametrize("kept_file", ["token", "holder"])
def test_a_file_that_got_the_number_of_a_closed_descriptor_is_left_alone(tmp_path: Path, kept_file: str) -> None:
    path = tmp_path / "x.lock"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "result").write_bytes(b"")
    lock = FileLock(path, fenced=True)
    calm(lock, path)
    (number,) = (
        int(fd)
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == f"{path}.{kept_file}"
    )
    taken = os.open(mine / "result", os.O_RDWR)
    try:
        os.close(number)  # by a mistake somewhere else in the process
        with lock:  # notices
            before = lock.token
            os.dup2(taken, number)  # whatever had it, has another by now
        for more in (1, 2):
            with lock:
                assert lock.token == before + more
        assert (mine / "result").read_bytes() == b""
    finally:
        os.close(taken)


def test_a_process_without_free_descriptors_has_not_lost_its_lock(tmp_path: Path) -> None:
    lock, taken = FileLock(tmp_path / "x.lock", fenced=True), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with lock:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.dup(0))
            lock.check()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)


@pytest.mark.parametrize("fenced", [False, True])
def test_a_release_frees_no_other_lock_that_got_the_number_of_a_closed_descriptor(tmp_path: Path, fenced: bool) -> None:
    lock, other = FileLock(tmp_path / "x.lock", fenced=fenced), FileLock(tmp_path / "other.lock")
    lock.acquire()
    number = lock.fileno()
    os.close(number)  # by a mistake somewhere else in the process
    with other:
        assert other.fileno() == number
        with pytest.raises(LockLostError, match="closed by other code"):
            lock.release()
        assert not is_free(other.path)
    assert is_free(other.path)


@pytest.mark.parametrize("fenced", [False, True])
def test_a_descriptor_that_was_closed_between_two_uses_is_not_locked_again(tmp_path: Path, fenced: bool) -> None:
    lock, other = FileLock(tmp_path / "x.lock", fenced=fenced), FileLock(tmp_path / "other.lock")
    with lock:
        number = lock.fileno()
    os.close(number)  # as a daemon does with all that it finds open
    with other:
        assert other.fileno() == number
        with lock:
            lock.check()
            with pytest.raises(LockTimeout):
                FileLock(tmp_path / "x.lock").acquire(timeout=0)
        other.check()
        with pytest.raises(LockTimeout):
            FileLock(tmp_path / "other.lock").acquire(timeout=0)


@pytest.mark.parametrize("fenced", [False, True])
def test_a_lock_that_is_dropped_closes_no_file_that_got_its_number(tmp_path: Path, fenced: bool) -> None:
    lock = FileLock(tmp_path / "x.lock", fenced=fenced)
    with lock:
        number = lock.fileno()
    os.close(number)
    with open(tmp_path / "data", "wb") as file:
        assert file.fileno() == number
        del lock
        gc.collect()
        file.write(b"mine")
    assert (tmp_path / "data").read_bytes() == b"mine"


def test_a_forked_child_closes_a_lock_that_got_the_number_of_a_closed_one(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "other.lock")
    with lock:
        number = lock.fileno()
    os.close(number)
    with other:
        assert other.fileno() == number
        del lock
        gc.collect()

        def is_open() -> bool:
            try:
                os.fstat(number)
            except OSError:
                return False
            return True

        assert not run_forked(is_open)
