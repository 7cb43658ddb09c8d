"""What a lock keeps whole: increments of one number, beside others that lock the same file in their own way.

Linux has two families of file locks that do not see each other: flock(2), and fcntl(2), which R uses.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench import contenders
from bench.contenders import Contender
from bench.figures import Measured, at_most, reading, rounds, say

SIDE = 4
"""Processes of each kind."""

ROUNDS = 3
_SECONDS = 0.5
_BETWEEN = 0.0002
"""Seconds between reading the number and writing it: the work that the lock is for."""

_WIDTH = 8


def lost(directory: Path, scale: float) -> Iterator[Measured]:
    """Every increment is a read, a short wait and a write, under the lock."""
    yield from _of("sharedvol", contenders.ours, directory, scale)
    for name, kind in contenders.installed().items():
        yield from _of(name, kind, directory, scale)


def _of(name: str, kind: Contender, directory: Path, scale: float) -> Iterator[Measured]:
    say(f"lost: {name}")
    missing = 0
    for beside, other in (("itself", kind), ("fcntl", contenders.lockf), ("flock", contenders.flock)):
        parts, shares, told = [], [], [0, 0]
        for number in range(rounds(ROUNDS, scale)):
            counts, final = _run_of(kind, other, directory / f"{name}-{beside}-{number}", _SECONDS * scale)
            total = sum(counts)
            parts.append((total - final) / total * 100)
            shares.append(sum(counts[:SIDE]) / total * 100)
            told = [told[0] + total - final, told[1] + total]
        missing += told[0]
        yield reading("lost", name, beside, parts, f"{told[0]:,} of {told[1]:,}")
        if beside != "itself":
            yield reading("lost-turns", name, beside, shares)
    if kind is contenders.ours:
        yield at_most("increments lost, beside itself, fcntl and flock", missing, 0, f"{ROUNDS} rounds of each")


def _run_of(kind: Contender, other: Contender, path: Path, seconds: float) -> tuple[list[int], int]:
    """How often each process counted, and where the number ended."""
    lock = f"{path}.lock"
    number = f"{path}.number"
    Path(number).write_bytes(bytes(_WIDTH))
    sides = [(kind, lock)] * SIDE + [(other, lock if other is kind else contenders.file_of(kind, lock))] * SIDE
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(sides))
    with context.Pool(len(sides), initializer=_enter, initargs=(barrier, number, seconds)) as pool:
        counts = pool.map(_count, sides, chunksize=1)
    return counts, int.from_bytes(Path(number).read_bytes(), "little")


_shared: tuple[Barrier, str, float]


def _enter(barrier: Barrier, number: str, seconds: float) -> None:
    global _shared
    _shared = barrier, number, seconds


def _count(side: tuple[Contender, str]) -> int:
    barrier, number, seconds = _shared
    kind, path = side
    acquire, release = kind(path)
    fd = os.open(number, os.O_RDWR)
    done = 0
    barrier.wait()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        acquire()
        seen = int.from_bytes(os.pread(fd, _WIDTH, 0), "little")
        time.sleep(_BETWEEN)
        os.pwrite(fd, (seen + 1).to_bytes(_WIDTH, "little"), 0)
        release()
        done += 1
    return done
