"""The file lock beside raw system calls, filelock and kernel waiters."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import filelock

from bench.figures import Figure, at_least, at_most, between, note
from sharedvol import FileLock

_WRITE = struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0)
_NONE = struct.pack("@hhqqi0q", fcntl.F_UNLCK, 0, 0, 0, 0)
HOLD = 0.001

Contender = Callable[[str], tuple[Callable[[], object], Callable[[], object]]]


def _raw_both(path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def acquire() -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release() -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NONE)

    return acquire, release


def _flock(path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    return lambda: fcntl.flock(fd, fcntl.LOCK_EX), lambda: fcntl.flock(fd, fcntl.LOCK_UN)


def _lockf(path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """What R does: a POSIX lock, waiting in the kernel."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    return lambda: fcntl.lockf(fd, fcntl.LOCK_EX), lambda: fcntl.lockf(fd, fcntl.LOCK_UN)


def _ours(path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    lock = FileLock(path)
    return lock.acquire, lock.release


def _filelock(path: str) -> tuple[Callable[[], object], Callable[[], object]]:
    lock = filelock.FileLock(path)
    return lock.acquire, lock.release


def uncontended(directory: Path, scale: float) -> Iterator[Figure]:
    """Acquire and release, nobody else there, the object kept."""
    rounds, count = 9, int(20_000 * scale)
    pairs = [
        (kind(str(directory / f"{number}.lock")), max(200, count // (20 if kind is _filelock else 1)))
        for number, kind in enumerate((_raw_both, _ours, _filelock))
    ]
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for number, ((acquire, release), turns) in enumerate(pairs):
            began = time.perf_counter()
            for _ in range(turns):
                acquire()
                release()
            times[number].append((time.perf_counter() - began) / turns)
    raw, ours, peer = (statistics.median(column) for column in times)
    detail = f"{ours * 1e6:.2f} us; raw {raw * 1e6:.2f} us, filelock {peer * 1e6:.1f} us"
    yield at_least("uncontended: share of the raw double lock's rate", raw / ours, 0.35, detail)
    yield at_least("uncontended: times filelock's rate", peer / ours, 8, detail)


def fenced(directory: Path, scale: float) -> Iterator[Figure]:
    """Acquire and release with fencing token and holder information, nobody else there, the object kept."""
    for where, target in (("quiet", 3), ("restless", 4)):
        place = directory / where
        place.mkdir()
        locks = [FileLock(place / "plain.lock"), FileLock(place / "fenced.lock", fenced=True, purpose="bench")]
        for lock in locks:
            with lock:
                pass  # makes its files
        time.sleep(0.5)  # the directory is trusted when its last change is not of this very moment
        disturb = partial(_touch, place / "other") if where == "restless" else lambda: None
        plain, both = _side_by_side(locks, disturb, rounds=9, count=max(200, int(10_000 * scale)))
        detail = f"{both * 1e6:.2f} us; plain {plain * 1e6:.2f} us"
        yield at_most(f"fenced, with holder information, {where} directory: times plain", both / plain, target, detail)


def _side_by_side(locks: list[FileLock], disturb: Callable[[], None], *, rounds: int, count: int) -> list[float]:
    """The median seconds of acquire and release of each, with ``disturb`` before, which is not counted."""
    times: list[list[float]] = [[] for _ in locks]
    for _ in range(rounds):
        for lock, column in zip(locks, times, strict=True):
            spent = 0.0
            for _ in range(count):
                disturb()
                began = time.perf_counter()
                lock.acquire()
                lock.release()
                spent += time.perf_counter() - began
            column.append(spent / count)
    return [statistics.median(column) for column in times]


def _touch(path: Path) -> None:
    """Change the names of a directory."""
    path.touch()
    path.unlink()


def contended(directory: Path, scale: float) -> Iterator[Figure]:
    """Many processes, 1 ms held."""
    for processes in (8, 32):
        # Long enough for some hundred turns of each: who gets the most of few turns is chance.
        seconds = max(4, processes / 2) * scale
        ours_rates, peer_rates, ours_p99, peer_p99, ours_even, peer_even = ([] for _ in range(6))  # type: ignore[var-annotated]
        for number in range(3):
            for kind, rates, waits, even in (
                (_flock, peer_rates, peer_p99, peer_even),
                (_ours, ours_rates, ours_p99, ours_even),
            ):
                path = str(directory / f"{kind.__name__}{processes}-{number}.lock")
                results = _crowd([kind] * processes, path, seconds)
                rates.append(sum(len(times) for times in results) / seconds)
                waits.append(_p99([wait for times in results for wait in times]))
                counts = [len(times) for times in results]
                even.append(min(counts) / max(counts))
        rate, peer = statistics.median(ours_rates), statistics.median(peer_rates)
        p99, peer_wait = statistics.median(ours_p99), statistics.median(peer_p99)
        name = f"{processes} processes, 1 ms held:"
        yield at_least(f"{name} share of blocking flock's rate", rate / peer, 0.95, f"{rate:.0f}/s; flock {peer:.0f}/s")
        yield at_most(
            f"{name} p99 wait, times flock's",
            p99 / peer_wait,
            1.5,
            f"{p99 * 1e3:.1f} ms; flock {peer_wait * 1e3:.1f} ms",
        )
        yield at_least(
            f"{name} fewest turns to most",
            statistics.median(ours_even),
            0.8,
            f"flock {statistics.median(peer_even):.2f}",
        )


def beside_posix_waiters(directory: Path, scale: float) -> Iterator[Figure]:
    """Four of ours beside four that wait in blocking lockf, as R does."""
    shares, worst = [], []
    for number in range(3):
        results = _crowd([_ours] * 4 + [_lockf] * 4, str(directory / f"beside{number}.lock"), 4 * scale)
        counts = [len(times) for times in results]
        shares.append(sum(counts[:4]) / sum(counts))
        worst.append(max((max(times) for times in results[:4] if times), default=0.0))
    share = statistics.median(shares)
    detail = f"each run {', '.join(f'{value:.2f}' for value in shares)}"
    yield between("beside 4 lockf waiters: our share of the turns", share, 0.4, 0.6, detail)
    yield note("beside 4 lockf waiters: our worst wait, in ms", statistics.median(worst) * 1e3, "")


def _crowd(kinds: list[Contender], path: str, seconds: float) -> list[list[float]]:
    """Each process's waits, in seconds, in a run of so long."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(kinds))
    with context.Pool(len(kinds), initializer=_enter, initargs=(barrier, path, seconds)) as pool:
        return pool.map(_contend, kinds, chunksize=1)


_run: tuple[Barrier, str, float]


def _enter(barrier: Barrier, path: str, seconds: float) -> None:
    global _run
    _run = barrier, path, seconds


def _contend(kind: Contender) -> list[float]:
    barrier, path, seconds = _run
    acquire, release = kind(path)
    waits = []
    barrier.wait()  # one task to a process: nobody passes before all are here
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        acquire()
        waits.append(time.perf_counter() - began)
        time.sleep(HOLD)
        release()
    return waits


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
