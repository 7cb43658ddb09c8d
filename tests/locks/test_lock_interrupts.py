"""An interrupt at any moment of an acquire or a release leaves a file lock or a semaphore either held or free."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from sharedvol import FileLock, LockFileError, Semaphore
from sharedvol.locks.file import linux

# An interrupt may come in a finaliser as well, where Python prints it and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

L = TypeVar("L", FileLock, Semaphore)

PACKAGE = os.path.join("sharedvol", "")


class Struck(BaseException):
    """What a signal handler raises."""


class Interrupts:
    """Strikes once in what it runs, one place later at each call.

    CPython looks for signals where a function begins and after a function in C: there, and nowhere in between.
    """

    def __init__(self) -> None:
        self.step = 0
        self._left = 0

    def strike(self, work: Callable[[], object]) -> bool:
        """Whether ``work`` came as far as to be interrupted."""
        self.step += 1
        self._left = self.step
        sys.setprofile(self._look)
        try:
            work()
        except Struck:
            return True
        except LockFileError:
            pass
        finally:
            sys.setprofile(None)
        return self._left <= 0

    def _look(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return", "c_exception") and PACKAGE in frame.f_code.co_filename:
            self._left -= 1
            if self._left == 0:
                sys.setprofile(None)
                raise Struck


def is_free(path: Path) -> bool:
    """Whether both locks of the file can be had."""
    if not path.exists():
        return True
    fd = os.open(path, os.O_RDWR)
    try:
        return linux.try_both(fd, str(path), shared=False)
    finally:
        os.close(fd)


def strikes(directory: Path, make: Callable[[Path], L], phase: str, at_least: int) -> Iterator[tuple[L, Path]]:
    """The lock and its path behind each of the interrupts, a new one for each."""
    interrupts, struck = Interrupts(), True
    while struck:
        path = directory / f"{interrupts.step}.lock"
        lock = make(path)
        if phase != "first acquire":
            lock.acquire()
        if phase == "acquire":
            lock.release()
        struck = interrupts.strike(lock.release if phase == "release" else lock.acquire)
        yield lock, path
    assert interrupts.step > at_least


@pytest.mark.parametrize("fenced", [False, True])
@pytest.mark.parametrize("phase", ["first acquire", "acquire", "release"])
def test_a_file_lock_is_held_or_free(tmp_path: Path, fenced: bool, phase: str) -> None:
    for lock, path in strikes(tmp_path, lambda path: FileLock(path, fenced=fenced), phase, at_least=8):
        assert is_free(path) is not lock.held
        if lock.held:
            lock.release()
        with lock:  # what the interrupt left can be used
            assert not is_free(path)


@pytest.mark.parametrize("phase", ["acquire", "release"])
@pytest.mark.parametrize("kind", ["plain", "fenced", "semaphore"])
def test_no_descriptor_is_left(tmp_path: Path, kind: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest keeps what a finaliser raised, and with its traceback the lock.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def make(name: str) -> FileLock | Semaphore:
        return (
            Semaphore(tmp_path / name, 1) if kind == "semaphore" else FileLock(tmp_path / name, fenced=kind == "fenced")
        )

    make("first").acquire().release()  # the first of a process opens what all share
    before, interrupts, struck = descriptors(), Interrupts(), True
    while struck:
        lock = make(f"{interrupts.step}.lock")
        lock.acquire()
        if phase == "acquire":
            lock.release()
        struck = interrupts.strike(lock.release if phase == "release" else lock.acquire)
        del lock
        assert descriptors() == before


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_a_lock_whose_token_cannot_be_had_is_free(tmp_path: Path) -> None:
    def make(path: Path) -> FileLock:
        Path(f"{path}.token").write_text("damaged")
        return FileLock(path, fenced=True)

    for lock, path in strikes(tmp_path, make, "first acquire", at_least=50):
        assert not lock.held
        assert is_free(path)


@pytest.mark.parametrize("phase", ["first acquire", "acquire", "release"])
def test_a_permit_is_held_or_free_and_nobody_stands_in_the_queue(tmp_path: Path, phase: str) -> None:
    for semaphore, path in strikes(tmp_path, lambda path: Semaphore(path, 1), phase, at_least=20):
        assert is_free(Path(f"{path}.queue.lock"))
        assert is_free(Path(f"{path}.0.lock")) is not semaphore.held
