"""The log handler beside those of Python's logging: what a record costs, and what is left of the records."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.figures import Measured, at_most, note, reading, rounds
from sharedvol.logs import ReplicaFileHandler

PROCESSES = 4
ROUNDS = 3
_ROTATED = 1_000_000
"""Bytes after which a file is full."""

Make = Callable[[Path], logging.Handler]


def _ours(place: Path) -> logging.Handler:
    return ReplicaFileHandler(place, max_bytes=0)


def _ours_rotating(place: Path) -> logging.Handler:
    return ReplicaFileHandler(place, max_bytes=_ROTATED)


def _file(place: Path) -> logging.Handler:
    return logging.FileHandler(place / "app.log")


def _rotating(place: Path) -> logging.Handler:
    # So many old files that none is removed for its age.
    return logging.handlers.RotatingFileHandler(place / "app.log", maxBytes=_ROTATED, backupCount=1000)


OURS, FILE = "sharedvol", "logging.FileHandler"
_ALONE: dict[str, Make] = {OURS: _ours, FILE: _file}
_TOGETHER: dict[str, Make] = {
    "sharedvol, rotation": _ours_rotating,
    "logging.RotatingFileHandler": _rotating,
    f"{FILE}, no rotation": _file,
}


def logs(directory: Path, scale: float) -> Iterator[Measured]:
    """Records of 100 characters, by one process, and by the four of a replica that start with one configuration."""
    os.environ.setdefault("HOSTNAME", "replica")
    count = max(100, int(20_000 * scale))
    alone: dict[str, list[float]] = {name: [] for name in _ALONE}
    together: dict[str, list[tuple[float, float]]] = {name: [] for name in _TOGETHER}
    for number in range(rounds(ROUNDS, scale)):
        for name, make in _ALONE.items():
            rate, missing = _run_of(make, directory / f"alone-{name}-{number}", 1, count)
            assert not missing, name
            alone[name].append(rate)
        for name, make in _TOGETHER.items():
            together[name].append(_run_of(make, directory / f"together-{name}-{number}", PROCESSES, count))
    ratios = [mine / peer for mine, peer in zip(alone[OURS], alone[FILE], strict=True)]
    detail = f"{statistics.median(alone[OURS]):,.0f}/s; {statistics.median(alone[FILE]):,.0f}/s"
    yield note("logs: share of logging.FileHandler's rate, one process", statistics.median(ratios), detail, ratios)
    missing = max(share for _, share in together["sharedvol, rotation"])
    yield at_most(
        "logs: records lost, 4 processes and rotation, %", missing, 0, f"{PROCESSES * count:,} records a round"
    )
    for name, rates in alone.items():
        yield reading("logs-alone", name, "rate", rates)
    for name, results in together.items():
        yield reading("logs-together", name, "rate", (rate for rate, _ in results))
        yield reading("logs-together", name, "lost", (share for _, share in results))


def _run_of(make: Make, place: Path, processes: int, count: int) -> tuple[float, float]:
    """Records a second, of all processes together, and the percentage that is in no file afterwards."""
    place.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=_enter, initargs=(barrier, make, place, count)) as pool:
        slowest = max(pool.map(_write, range(processes), chunksize=1))
    total = processes * count
    found = {line for file in place.rglob("*") if file.is_file() for line in file.read_bytes().splitlines()}
    whole = {f"{_line(process, number)}".encode() for process in range(processes) for number in range(count)}
    return total / slowest, (1 - len(found & whole) / total) * 100


_shared: tuple[Barrier, Make, Path, int]


def _enter(*shared: object) -> None:
    global _shared
    logging.raiseExceptions = False  # a record that a handler cannot write is lost, and counted as that
    _shared = shared  # type: ignore[assignment]


def _write(process: int) -> float:
    """Seconds that all records of this process take."""
    barrier, make, place, count = _shared
    logger = logging.Logger("bench", logging.INFO)
    logger.addHandler(make(place))
    barrier.wait()
    began = time.perf_counter()
    for number in range(count):
        logger.info(_line(process, number))
    took = time.perf_counter() - began
    logger.handlers[0].close()
    return took


def _line(process: int, number: int) -> str:
    return f"{process:04} {number:095}"
