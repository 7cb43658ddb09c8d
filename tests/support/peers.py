"""Other lock implementations, driven in child processes: what replicas in other code and languages use."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import fasteners
import filelock
import portalocker

from sharedvol import FileLock, LockTimeout
from support.processes import LIMIT, Child


class Peer(Protocol):
    """One holder of a lock of some kind."""

    def __init__(self, path: str) -> None: ...

    def try_(self) -> bool:
        """Take the lock if it is free."""

    def block(self) -> None:
        """Wait for the lock, by the peer's own means."""

    def release(self) -> None:
        """Free it."""


class Ours:
    shared = False

    def __init__(self, path: str) -> None:
        self.lock = FileLock(path, shared=self.shared)

    def try_(self) -> bool:
        try:
            self.lock.acquire(timeout=0)
        except LockTimeout:
            return False
        return True

    def block(self) -> None:
        self.lock.acquire()

    def release(self) -> None:
        self.lock.release()


class OursBounded(Ours):
    def block(self) -> None:
        self.lock.acquire(timeout=LIMIT)


class OursShared(Ours):
    shared = True


class PythonFilelock:
    def __init__(self, path: str) -> None:
        self.lock = filelock.FileLock(path)

    def try_(self) -> bool:
        try:
            self.lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def block(self) -> None:
        self.lock.acquire(timeout=LIMIT, poll_interval=0.001)

    def release(self) -> None:
        self.lock.release()


class Portalocker:
    def __init__(self, path: str) -> None:
        self.path = path

    def try_(self) -> bool:
        self.lock = portalocker.Lock(self.path, fail_when_locked=True)
        try:
            self.lock.acquire()
        except portalocker.AlreadyLocked:
            return False
        return True

    def block(self) -> None:
        self.lock = portalocker.Lock(self.path, timeout=LIMIT, check_interval=0.001)
        self.lock.acquire()

    def release(self) -> None:
        self.lock.release()


class Fasteners:
    def __init__(self, path: str) -> None:
        self.lock = fasteners.InterProcessLock(path)

    def try_(self) -> bool:
        return bool(self.lock.acquire(blocking=False))

    def block(self) -> None:
        assert self.lock.acquire(delay=0.001, max_delay=0.001, timeout=LIMIT)

    def release(self) -> None:
        self.lock.release()


class Flock1:
    """flock(1) on a descriptor of ours, as a shell script uses it: ``exec 9>>file; flock 9``."""

    mode = "--exclusive"

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def _flock(self, *options: str) -> bool:
        done = subprocess.run(["flock", *options, str(self.fd)], pass_fds=[self.fd], timeout=LIMIT, check=False)
        assert done.returncode in (0, 1)
        return done.returncode == 0

    def try_(self) -> bool:
        return self._flock(self.mode, "--nonblock")

    def block(self) -> None:
        assert self._flock(self.mode)

    def release(self) -> None:
        assert self._flock("--unlock")


class Flock1Shared(Flock1):
    mode = "--shared"


class Lockf:
    """fcntl(2), as R's filelock and R's flock use it."""

    operation = fcntl.LOCK_EX

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def try_(self) -> bool:
        try:
            fcntl.lockf(self.fd, self.operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def block(self) -> None:
        fcntl.lockf(self.fd, self.operation)

    def release(self) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN)


class LockfShared(Lockf):
    operation = fcntl.LOCK_SH


class Unlocked:
    """No lock at all: for tests of the tests."""

    def __init__(self, path: str) -> None:
        pass

    def try_(self) -> bool:
        return True

    def block(self) -> None:
        pass

    def release(self) -> None:
        pass


# Peers of one family exclude each other; peers of two do not, which is why ours takes both.
FLOCK_FAMILY: list[type[Peer]] = [PythonFilelock, Portalocker, Flock1]
FCNTL_FAMILY: list[type[Peer]] = [Fasteners, Lockf]
PEERS = [*FLOCK_FAMILY, *FCNTL_FAMILY]


def read_number(data: Path) -> int:
    """The counter in ``data``."""
    return int(data.read_text() or "0")


def increment(data: Path, between: Callable[[], object] = lambda: None) -> None:
    """Read and write, which loses updates unless a lock is held around both."""
    number = read_number(data)
    between()
    data.write_text(str(number + 1))


def driven(kind: type[Peer], path: Path, data: Path | None = None) -> Child:
    """A child that does with a peer what it is told, and answers.

    ``try``, ``block`` and ``release`` as in `Peer`; ``count N`` increments the counter N times under the
    lock; ``slow`` increments it once, and stops between read and write until told to go on.
    """

    def work(connection: Connection) -> None:
        peer = kind(os.fspath(path))
        while True:
            match connection.recv().split():
                case ["try"]:
                    connection.send(peer.try_())
                case ["block"]:
                    peer.block()
                    connection.send("held")
                case ["release"]:
                    peer.release()
                    connection.send("released")
                case ["count", times] if data is not None:
                    for _ in range(int(times)):
                        peer.block()
                        increment(data, os.sched_yield)
                        peer.release()
                    connection.send("counted")
                case ["slow"] if data is not None:
                    peer.block()
                    increment(data, lambda: (connection.send("read"), connection.recv()))
                    peer.release()
                    connection.send("counted")
                case ["end"]:
                    return

    return Child(work)
