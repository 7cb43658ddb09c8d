"""The file lock beside raw system calls, peers and kernel waiters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench import contenders
from bench.contenders import Contender
from bench.crowd import Runs, crowd
from bench.figures import Figure, Measured, at_least, at_most, between, note, reading, rounds, say
from sharedvol import FileLock

ROUNDS = 3
OURS, FLOCK = "sharedvol", "blocking flock"
AWAY = 0.002
"""Seconds between two turns of one process."""


def uncontended(directory: Path, scale: float) -> Iterator[Measured]:
    """Acquire and release, nobody else there, the object kept."""
    kinds = {OURS: contenders.ours, "raw": contenders.raw_both, FLOCK: contenders.flock, **contenders.installed()}
    times = _rounds(directory, kinds, repeated=7, count=int(20_000 * scale))
    raw, mine, peer = (times.get(name, []) for name in ("raw", OURS, "filelock"))
    detail = f"{_median(mine) * 1e6:.2f} us; raw {_median(raw) * 1e6:.2f} us"
    yield at_least(
        "uncontended: share of the raw double lock's rate", *_ratio(raw, mine, 0.35), detail, _each(raw, mine)
    )
    if peer:
        detail = f"{_median(mine) * 1e6:.2f} us; filelock {_median(peer) * 1e6:.1f} us"
        yield at_least("uncontended: times filelock's rate", *_ratio(peer, mine, 8), detail, _each(peer, mine))
    for who, column in times.items():
        words = "both locks, raw calls" if who == "raw" else who
        yield reading("alone", words, "rate", (1 / seconds for seconds in column))


def _ratio(upper: Sequence[float], lower: Sequence[float], limit: float) -> tuple[float, float]:
    """The median of the rounds' ratios: what is compared ran side by side."""
    return _median(_each(upper, lower)), limit


def _each(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [one / other for one, other in zip(upper, lower, strict=True)]


def _rounds(directory: Path, kinds: dict[str, Contender], repeated: int, count: int) -> dict[str, list[float]]:
    """Seconds that one turn of each kind takes, one after the other in each round."""
    pairs = {name: kind(str(directory / f"alone-{name}.lock")) for name, kind in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeated):
        for name, (acquire, release) in pairs.items():
            turns = max(200, count // (1 if name in (OURS, "raw", FLOCK) else 20))
            began = time.perf_counter()
            for _ in range(turns):
                acquire()
                release()
            times[name].append((time.perf_counter() - began) / turns)
    return times


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
        plain, both = _side_by_side(locks, disturb, repeated=9, count=max(200, int(10_000 * scale)))
        detail = f"{_median(both) * 1e6:.2f} us; plain {_median(plain) * 1e6:.2f} us"
        name = f"fenced, with holder information, {where} directory: times plain"
        yield at_most(name, *_ratio(both, plain, target), detail, _each(both, plain))


def _side_by_side(
    locks: list[FileLock], disturb: Callable[[], None], *, repeated: int, count: int
) -> list[list[float]]:
    """The seconds of acquire and release of each, by rounds, with ``disturb`` before, which is not counted."""
    times: list[list[float]] = [[] for _ in locks]
    for _ in range(repeated):
        for lock, column in zip(locks, times, strict=True):
            spent = 0.0
            for _ in range(count):
                disturb()
                began = time.perf_counter()
                lock.acquire()
                lock.release()
                spent += time.perf_counter() - began
            column.append(spent / count)
    return times


def _touch(path: Path) -> None:
    """Change the names of a directory."""
    path.touch()
    path.unlink()


def contended(directory: Path, scale: float) -> Iterator[Measured]:
    """Many processes that take the lock again as soon as they have released it; 1 ms held."""
    for processes, seconds in ((8, 3), (32, 6)):
        # Long enough for some hundred turns of each: who gets the most of few turns is chance.
        # And as long for each: the longer it goes on, the longer is the longest wait, and the more even are the turns.
        kinds = {OURS: contenders.ours, FLOCK: contenders.flock}
        if processes == 8:
            kinds |= contenders.installed()
        runs = _runs(kinds, processes, directory, seconds * scale, rounds(ROUNDS, scale))
        yield from _judged(processes, runs[OURS], runs[FLOCK])
        if processes == 8:
            for name, run in runs.items():
                for what, samples in _columns(run).items():
                    yield reading("greedy", name, what, samples)


def crowds(directory: Path, scale: float) -> Iterator[Measured]:
    """Ours and peers: 1 ms held, then 2 ms of something else, as a service has it."""
    kinds = {OURS: contenders.ours, FLOCK: contenders.flock, **contenders.installed()}
    for processes, seconds in ((2, 0.5), (8, 1.0), (32, 1.5))[: 3 if scale >= 0.5 else 1]:
        runs = _runs(kinds, processes, directory, seconds * scale, rounds(ROUNDS, scale), AWAY)
        for name, run in runs.items():
            for what, samples in _columns(run).items():
                yield reading(f"crowd-{processes}", name, what, samples)


def _runs(
    kinds: dict[str, Contender], processes: int, directory: Path, seconds: float, repeated: int, away: float = 0.0
) -> dict[str, Runs]:
    say(f"{processes} processes, {seconds:g} s each: {', '.join(kinds)}")
    runs = {name: Runs() for name in kinds}
    for number in range(repeated):
        for name, kind in kinds.items():
            path = str(directory / f"{name.replace(' ', '-')}-{processes}-{away:g}-{number}.lock")
            runs[name].add(crowd([kind] * processes, path, seconds, away), seconds)
    return runs


def _columns(run: Runs) -> dict[str, list[float]]:
    """In turns a second, milliseconds and shares."""
    p50, p99, worst = ([wait * 1e3 for wait in waits] for waits in (run.p50, run.p99, run.worst))
    return {"rate": run.rates, "p50": p50, "p99": p99, "worst": worst, "even": run.even}


def _judged(processes: int, mine: Runs, flock: Runs) -> Iterator[Figure]:
    rate, peer, p99, wait = (_median(column) for column in (mine.rates, flock.rates, mine.p99, flock.p99))
    name = f"{processes} processes, 1 ms held:"
    yield at_least(
        f"{name} share of blocking flock's rate",
        *_ratio(mine.rates, flock.rates, 0.95),
        f"{rate:.0f}/s; flock {peer:.0f}/s",
        _each(mine.rates, flock.rates),
    )
    yield at_most(
        f"{name} p99 wait, times flock's",
        *_ratio(mine.p99, flock.p99, 1.5),
        f"{p99 * 1e3:.1f} ms; flock {wait * 1e3:.1f} ms",
        _each(mine.p99, flock.p99),
    )
    yield at_least(
        f"{name} fewest turns to most", _median(mine.even), 0.8, f"flock {_median(flock.even):.2f}", mine.even
    )


def beside_posix_waiters(directory: Path, scale: float) -> Iterator[Figure]:
    """Four of ours beside four that wait in blocking lockf, as R does."""
    shares, worst = [], []
    for number in range(ROUNDS):
        kinds = [contenders.ours] * 4 + [contenders.lockf] * 4
        results = crowd(kinds, str(directory / f"beside{number}.lock"), 4 * scale)
        counts = [len(times) for times in results]
        shares.append(sum(counts[:4]) / sum(counts))
        worst.append(max((max(times) for times in results[:4] if times), default=0.0) * 1e3)
    yield between("beside 4 lockf waiters: our share of the turns", _median(shares), 0.4, 0.6, "", shares)
    yield note("beside 4 lockf waiters: our worst wait, in ms", _median(worst), "", worst)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
