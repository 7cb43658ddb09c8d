"""A large backlog, and the memory that it takes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, at_most, note, say
from bench.spool import SIDECAR, make, volume

CONTAINERS = 100
_LOOK = 0.02


def backlog(directory: Path, scale: float) -> Iterator[Figure]:
    """Many small files of many containers, collected by one `once` and the helper that it calls.

    What is measured is VmHWM of proc_pid_status(5), the most memory a process had resident, read every 20 ms
    until it ends: what it grows by in its last moment is missed. Both processes are summed, though not at one
    moment and with the pages of the programs and libraries that they share counted twice: the truth is below.
    """
    small, large = int(100_000 * scale), int(1_000_000 * scale)
    few = _peaks(directory / "small", small)
    many = _peaks(directory / "large", large)
    detail = f"the larger alone {max(many.values()):.0f} MB, {len(many)} processes"
    yield at_most(f"backlog of {large:,}: MB of memory, both processes summed", sum(many.values()), 100, detail)
    detail = f"{sum(many.values()):.0f} MB; {sum(few.values()):.0f} MB with {small:,}"
    yield at_most("backlog: memory over that with a tenth of it", sum(many.values()) / sum(few.values()), 1.15, detail)
    yield note("backlog: the larger process alone, MB", max(many.values()), "")


def _peaks(home: Path, count: int) -> dict[int, float]:
    """The most memory that each process of a `once` had, in MB, by process."""
    spool, collected = volume(home)
    say(f"backlog: making {count:,} files")
    for number in range(CONTAINERS):
        make(spool / f"c{number}" / "results", count // CONTAINERS, size=100)
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(
        [*SIDECAR, "once", "--from", spool, "--to", collected, "--quiet", "0", "--json"], stdout=subprocess.PIPE
    )
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in (process.pid, *_children(process.pid)):
            with contextlib.suppress(OSError, ValueError):  # ended meanwhile, or has no memory any more
                peaks[pid] = max(peaks.get(pid, 0.0), _high_water(pid))
        time.sleep(_LOOK)
    took = time.perf_counter() - began
    answer = process.communicate()[0]
    assert process.returncode == 0 and json.loads(answer)["collected"] == count // CONTAINERS * CONTAINERS, answer
    say(f"backlog: {count:,} collected in {took:.0f} s, {count / took:,.0f}/s; peaks {_words(peaks)}; clearing up")
    shutil.rmtree(home)
    return peaks


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _high_water(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(pid)


def _words(peaks: dict[int, float]) -> str:
    return " + ".join(f"{peak:.0f} MB" for peak in peaks.values())
