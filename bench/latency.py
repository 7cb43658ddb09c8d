"""How long a file waits: from the moment its writer is done until it has its final name."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from bench.figures import Figure, at_most, say
from bench.spool import LIMIT, SIDECAR, running, volume
from sharedvol import publish

PACE = 0.03
"""Seconds between two files: no multiple of an interval or of a gap between two passes."""

INTERVAL = 1.0

_WITHOUT_EVENTS = """
import errno, sys
import sharedvol_sidecar.spool.watcher
def refused():
    raise OSError(errno.EMFILE, "no events, for the measurement")
sharedvol_sidecar.spool.watcher.INotify = refused
from sharedvol_sidecar.cli import main
sys.exit(main())
"""


def latency(directory: Path, scale: float) -> Iterator[Figure]:
    """Files at a steady pace, and a process that looks for each final name every millisecond.

    Both sides read CLOCK_MONOTONIC, which all processes of a machine share.
    """
    count = max(5, int(250 * scale))
    scan_only = (sys.executable, "-P", "-c", _WITHOUT_EVENTS)
    flags = ("--interval", str(INTERVAL))
    for name, write, program, extra, limit in (
        ("published", _publish, SIDECAR, ("--interval", "60"), 0.3),
        ("renamed into place", _rename, SIDECAR, ("--interval", "60"), 0.3),
        ("closed, quiet 0", _close, SIDECAR, ("--interval", "60", "--quiet", "0"), 0.3),
        (f"no events, a scan every {INTERVAL:g} s", _publish, scan_only, flags, INTERVAL + 0.3),
    ):
        waits = sorted(_waits(directory / name.replace(" ", "-"), count, write, program, extra))
        p99 = waits[int(len(waits) * 0.99)]
        detail = f"p50 {statistics.median(waits) * 1e3:.0f} ms, worst {waits[-1] * 1e3:.0f} ms, {count} files"
        yield at_most(f"latency, {name}: p99 in seconds", p99, limit, detail)


def _waits(
    home: Path, count: int, write: Callable[[Path, str], None], program: Sequence[str], flags: Sequence[str]
) -> list[float]:
    say(f"latency: {home.name}")
    spool, collected = volume(home)
    source = spool / "c1" / "results"
    source.mkdir(parents=True)
    ours, theirs = multiprocessing.Pipe()
    names = [f"job_{number}.json" for number in range(count)]
    template = "{kind}/{name}"
    watcher = multiprocessing.get_context("fork").Process(target=_watch, args=(collected / "results", names, theirs))
    with running(spool, collected, "--template", template, *flags, program=program):
        watcher.start()
        try:
            ready, begun = [], time.monotonic()
            for number, name in enumerate(names):
                time.sleep(max(0.0, begun + number * PACE - time.monotonic()))
                write(source, name)
                ready.append(time.monotonic())
            if not ours.poll(LIMIT):
                raise TimeoutError("a file was not collected")
            seen: list[float] = ours.recv()
        finally:
            watcher.kill()
            watcher.join()
    return [there - here for here, there in zip(ready, seen, strict=True)]


def _watch(directory: Path, names: Sequence[str], answer: Connection) -> None:
    """When each of the names was there, looked for one after the other, as they come in that order."""
    seen = []
    for name in names:
        path = directory / name
        while not path.exists():
            time.sleep(0.001)
        seen.append(time.monotonic())
    answer.send(seen)


def _rename(directory: Path, name: str) -> None:
    temporary = directory / f".tmp-{name}"
    _close(directory, temporary.name)
    os.rename(temporary, directory / name)


def _publish(directory: Path, name: str) -> None:
    with publish(directory / name, "wb") as file:
        file.write(b"x" * 1024)


def _close(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"x" * 1024)
