"""The locks that are measured: ours, the kernel's own, and what peers make of them."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import say
from sharedvol import FileLock

_WRITE = struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0)
_NONE = struct.pack("@hhqqi0q", fcntl.F_UNLCK, 0, 0, 0, 0)
_PATIENCE = 120.0
"""Seconds, in the place of a default time-out that a crowd would run into."""

Pair = tuple[Callable[[], object], Callable[[], object]]
Contender = Callable[[str], Pair]
"""Makes, in the process that uses it, how to acquire and to release the lock at a path. Each waits as by default."""


def raw_both(path: str) -> Pair:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def acquire() -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release() -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NONE)

    return acquire, release


def flock(path: str) -> Pair:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    return lambda: fcntl.flock(fd, fcntl.LOCK_EX), lambda: fcntl.flock(fd, fcntl.LOCK_UN)


def lockf(path: str) -> Pair:
    """What R does: a POSIX lock, waiting in the kernel."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    return lambda: fcntl.lockf(fd, fcntl.LOCK_EX), lambda: fcntl.lockf(fd, fcntl.LOCK_UN)


def ours(path: str) -> Pair:
    lock = FileLock(path)
    return lock.acquire, lock.release


def filelock(path: str) -> Pair:
    import filelock as peer

    lock = peer.FileLock(path)
    return lock.acquire, lock.release


def portalocker(path: str) -> Pair:
    import portalocker as peer

    lock = peer.Lock(path, timeout=_PATIENCE)
    return lock.acquire, lock.release


def fasteners(path: str) -> Pair:
    import fasteners as peer

    lock = peer.InterProcessLock(path)
    return lock.acquire, lock.release


def tooz(path: str) -> Pair:
    lock = _tooz(path)
    return lock.acquire, lock.release


def _tooz(path: str) -> Any:
    from tooz import coordination

    coordinator = coordination.get_coordinator(f"file://{path}.tooz", f"process-{os.getpid()}".encode())
    coordinator.start()
    return coordinator.get_lock(Path(path).name.encode())


PEERS: dict[str, Contender] = {
    "filelock": filelock,
    "portalocker": portalocker,
    "fasteners": fasteners,
    "tooz": tooz,
}


def installed() -> dict[str, Contender]:
    """The peers that are here; says which are not."""
    there = {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name)}
    for name in there:
        importlib.import_module(name)  # once, for all processes that are forked
    if missing := sorted(PEERS.keys() - there.keys()):
        say(f"not installed, and left out: {', '.join(missing)}")
    return there


def file_of(kind: Contender, path: str) -> str:
    """The file that a lock at this path locks: tooz names its own."""
    return str(_tooz(path).name) if kind is tooz else path
