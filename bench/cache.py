"""The cache: a stampede on one cold key, and the rate of hits, beside diskcache."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.figures import Measured, Reading, at_least, at_most, note, reading, rounds, say
from sharedvol.cache import BYTES, Cache

PROCESSES = 32
SIZES = {100: "100 B", 1_000: "1 kB", 10_000: "10 kB", 100_000: "100 kB", 1_000_000: "1 MB"}


def cache(directory: Path, scale: float) -> Iterator[Measured]:
    """One cold key asked for by many processes at once; then hits."""
    for seconds, count in ((1.0, 3), (0.2, 7)):
        yield from _stampede(directory, seconds, seconds * scale, rounds(count, scale))
    yield from _hits(directory, int(20_000 * scale))
    yield from _sizes(directory, scale)


def _stampede(directory: Path, seconds: float, scaled: float, count: int) -> Iterator[Measured]:
    """All of them start at one moment, and the slowest of each round counts."""
    times, computations = _rounds(directory, "ours", scaled, count)
    name = f"{PROCESSES} processes, one cold key of {scaled:g} s:"
    yield at_most(f"{name} computations, at most", max(computations), 1, f"{count} rounds", computations)
    ratios = [took / scaled for took in times]
    detail = f"worst {max(times) * 1e3:.0f} ms, median {statistics.median(times) * 1e3:.0f} ms of {count} rounds"
    yield at_most(f"{name} worst time, times the computation's", max(ratios), 1.2, detail, ratios)
    if seconds < 1:
        return
    results = {"sharedvol": (times, computations)}
    if importlib.util.find_spec("diskcache"):
        results["diskcache, memoize"] = _rounds(directory, "memoize", scaled, count)
        results["diskcache, memoize + barrier"] = _rounds(directory, "barrier", scaled, count)
    for who, (took, computed) in results.items():
        yield reading("stampede", who, "computations", computed)
        yield reading("stampede", who, "seconds", took)


def _rounds(directory: Path, kind: str, seconds: float, count: int) -> tuple[list[float], list[int]]:
    """The slowest process's time in each round, and how often it was computed."""
    place = directory / f"stampede-{kind}-{seconds:g}"
    if kind == "ours":
        Cache(place, version="1", max_bytes=1 << 30)
    counted = place.with_suffix(".count")
    times, computations = [], []
    for number in range(count):
        counted.write_bytes(b"")
        times.append(max(_crowd(kind, place, f"key{number}", seconds, counted)))
        computations.append(counted.stat().st_size)
    return times, computations


def _crowd(kind: str, place: Path, key: str, seconds: float, counted: Path) -> list[float]:
    """Each process's time from the start of all to the value."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    run = (barrier, kind, place, key, seconds, counted)
    with context.Pool(PROCESSES, initializer=_enter, initargs=run) as pool:
        return pool.map(_ask, range(PROCESSES), chunksize=1)


_run: tuple[Barrier, str, Path, str, float, Path]


def _enter(*run: object) -> None:
    global _run
    _run = run  # type: ignore[assignment]


def _ask(_: int) -> float:
    barrier, kind, place, key, seconds, counted = _run

    def compute() -> str:
        with open(counted, "ab") as file:
            file.write(b".")
        time.sleep(seconds)
        return "value"

    get = _KINDS[kind](place)
    get(f"warm{os.getpid()}", lambda: "value")  # a replica that runs: its code is in memory
    barrier.wait()  # one task to a process: nobody passes before all are here
    began = time.perf_counter()
    assert get(key, compute) == "value"
    return time.perf_counter() - began


Get = Callable[[str, Callable[[], str]], str]


def _ours(place: Path) -> Get:
    return Cache(place, version="1", max_bytes=1 << 30).get


def _memoize(place: Path) -> Get:
    """As diskcache's tutorial begins: whoever misses computes."""
    import diskcache

    cache = diskcache.Cache(place)
    return lambda key, compute: cache.memoize(name=key)(compute)()


def _barrier(place: Path) -> Get:
    """Its recipe against stampedes: a lock around the computation, and a second look under it."""
    import diskcache

    cache = diskcache.Cache(place)

    def get(key: str, compute: Callable[[], str]) -> str:
        inner = cache.memoize(name=key)(compute)
        return cache.memoize(name=key)(diskcache.barrier(cache, diskcache.Lock, name=f"{key}-lock")(inner))()

    return get


_KINDS: dict[str, Callable[[Path], Get]] = {"ours": _ours, "memoize": _memoize, "barrier": _barrier}


def _hits(directory: Path, count: int) -> Iterator[Measured]:
    """One process reads entries that are there: 1,000 bytes each, as they are: diskcache pickles no bytes either."""
    value = os.urandom(1000)
    ours = Cache(directory / "ours", version="1", max_bytes=1 << 30, codec=BYTES)
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
    ratios = [theirs / ours for ours, theirs in times]
    yield at_least("hits of 1,000 bytes: times diskcache's rate", statistics.median(ratios), 0.25, detail, ratios)


def _sizes(directory: Path, scale: float) -> Iterator[Reading]:
    """Hits of several sizes: bytes, stored as they are, as both do it. Ours checks the digest of each."""
    ours = Cache(directory / "sizes-ours", version="1", max_bytes=1 << 30, codec=BYTES)
    theirs = None
    if importlib.util.find_spec("diskcache"):
        import diskcache

        theirs = diskcache.Cache(directory / "sizes-theirs")
    for size, words in SIZES.items():
        value = os.urandom(size)
        keys = [f"{size}-{number}" for number in range(20)]
        count = max(len(keys), int(min(8_000, 50_000_000 // size) * scale))
        reads: dict[str, Callable[[str], object]] = {"sharedvol": partial(ours.get, compute=partial(bytes, value))}
        for key in keys:
            ours.get(key, partial(bytes, value))
        if theirs is not None:
            reads["diskcache"] = theirs.__getitem__
            for key in keys:
                theirs.set(key, value)
        columns: dict[str, list[float]] = {who: [] for who in reads}
        for _ in range(5):
            for who, read in reads.items():
                columns[who].append(1 / _time(read, keys, count))
        for who, rates in columns.items():
            yield reading("hits", who, words, rates)
    if theirs is not None:
        theirs.close()


def _time(read: Callable[[str], object], keys: list[str], count: int) -> float:
    """Seconds that one read takes."""
    turns = max(1, count // len(keys))
    began = time.perf_counter()
    for _ in range(turns):
        for key in keys:
            read(key)
    return (time.perf_counter() - began) / (turns * len(keys))
