"""The cache: a stampede on one cold key, and the rate of hits, beside diskcache."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.figures import Figure, at_least, at_most, note, say
from sharedvol.cache import PICKLE, Cache

PROCESSES = 32


def cache(directory: Path, scale: float) -> Iterator[Figure]:
    """One cold key asked for by many processes at once; then hits."""
    for seconds, rounds in ((1.0, 3), (0.2, 7)):
        yield from _stampede(directory / f"stampede-{seconds:g}", seconds * scale, rounds)
    yield from _hits(directory, int(20_000 * scale))


def _stampede(directory: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """All of them start at one moment, and the slowest of each round counts."""
    shared = Cache(directory, version="1", max_bytes=1 << 30)
    counted = directory.with_suffix(".count")
    times, computations = [], []
    for number in range(rounds):
        counted.write_bytes(b"")
        times.append(max(_crowd(shared, f"key{number}", seconds, counted)))
        computations.append(counted.stat().st_size)
    name = f"{PROCESSES} processes, one cold key of {seconds:g} s:"
    yield at_most(f"{name} computations, at most", max(computations), 1, f"{rounds} rounds")
    detail = f"worst {max(times) * 1e3:.0f} ms, median {statistics.median(times) * 1e3:.0f} ms of {rounds} rounds"
    yield at_most(f"{name} worst time, times the computation's", max(times) / seconds, 1.2, detail)


def _crowd(shared: Cache, key: str, seconds: float, counted: Path) -> list[float]:
    """Each process's time from the start of all to the value."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    with context.Pool(PROCESSES, initializer=_enter, initargs=(shared, barrier, key, seconds, counted)) as pool:
        return pool.map(_ask, range(PROCESSES), chunksize=1)


_run: tuple[Cache, Barrier, str, float, Path]


def _enter(*run: object) -> None:
    global _run
    _run = run  # type: ignore[assignment]


def _ask(_: int) -> float:
    shared, barrier, key, seconds, counted = _run

    def compute() -> str:
        with open(counted, "ab") as file:
            file.write(b".")
        time.sleep(seconds)
        return "value"

    shared.get(("warm", str(os.getpid())), lambda: "value")  # a replica that runs: its code is in memory
    barrier.wait()  # one task to a process: nobody passes before all are here
    began = time.perf_counter()
    assert shared.get(key, compute) == "value"
    return time.perf_counter() - began


def _hits(directory: Path, count: int) -> Iterator[Figure]:
    """One process reads entries that are there: 1,000 bytes each, pickled, as diskcache does."""
    value = os.urandom(1000)
    ours = Cache(directory / "ours", version="1", max_bytes=1 << 30, codec=PICKLE)
    keys = [f"key{number}" for number in range(100)]
    for key in keys:
        ours.get(key, lambda: value)

    def missing() -> bytes:
        raise AssertionError("an entry is missing")

    def read(key: str) -> object:
        return ours.get(key, missing)

    try:
        import diskcache
    except ImportError:
        say("diskcache is not installed: hits are measured alone")
        ours_time = statistics.median(_time(read, keys, count) for _ in range(5))
        yield note("hits: microseconds each", ours_time * 1e6, f"{1 / ours_time:.0f}/s; diskcache: not there")
        return
    with diskcache.Cache(directory / "theirs") as theirs:
        for key in keys:
            theirs.set(key, value)
        times = [(_time(read, keys, count), _time(theirs.__getitem__, keys, count)) for _ in range(5)]
    ours_time, peer = (statistics.median(column) for column in zip(*times, strict=True))
    detail = f"{1 / ours_time:.0f}/s verified; diskcache {1 / peer:.0f}/s"
    yield at_least("hits of 1,000 bytes: times diskcache's rate", peer / ours_time, 0.25, detail)


def _time(read: Callable[[str], object], keys: list[str], count: int) -> float:
    """Seconds that one read takes."""
    turns = max(1, count // len(keys))
    began = time.perf_counter()
    for _ in range(turns):
        for key in keys:
            read(key)
    return (time.perf_counter() - began) / (turns * len(keys))
