"""Processes that want one lock, all at once, and what each of them waited."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier

from bench.contenders import Contender

HOLD = 0.001
"""Seconds that each holds the lock."""


@dataclass
class Runs:
    """What a crowd did, by rounds.

    Attributes:
        rates: turns a second, of all together.
        p50: the median wait, in seconds.
        p99: the wait that one turn of a hundred exceeds, in seconds.
        worst: the longest wait, in seconds.
        even: the turns of the process that had the fewest, as a share of those of the one that had the most.
    """

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    even: list[float] = field(default_factory=list)

    def add(self, results: Sequence[Sequence[float]], seconds: float) -> None:
        waits = sorted(wait for times in results for wait in times)
        counts = [len(times) for times in results]
        self.rates.append(len(waits) / seconds)
        self.p50.append(statistics.median(waits))
        self.p99.append(waits[int(len(waits) * 0.99)])
        self.worst.append(waits[-1])
        self.even.append(min(counts) / max(counts))


def crowd(kinds: Sequence[Contender], path: str, seconds: float, away: float = 0.0) -> list[list[float]]:
    """Each process's waits, in seconds.

    Args:
        kinds: the lock of each process.
        path: what they lock.
        seconds: how long they go on beginning turns; each turn that began is waited for and counts.
        away: seconds that each does without the lock after a turn.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(kinds))
    with context.Pool(len(kinds), initializer=_enter, initargs=(barrier, path, seconds, away)) as pool:
        return pool.map(_contend, kinds, chunksize=1)


_run: tuple[Barrier, str, float, float]


def _enter(barrier: Barrier, path: str, seconds: float, away: float) -> None:
    global _run
    _run = barrier, path, seconds, away


def _contend(kind: Contender) -> list[float]:
    barrier, path, seconds, away = _run
    acquire, release = kind(path)
    waits = []
    barrier.wait()  # one task to a process: nobody passes before all are here
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        acquire()
        waits.append(time.perf_counter() - began)
        time.sleep(HOLD)
        release()
        if away:
            time.sleep(away)
    return waits
