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
_RARELY = 10  # looks for one at what is shared, which costs the kernel a walk over all pages


def backlog(directory: Path, scale: float) -> Iterator[Figure]:
    """Many small files of many containers, collected by one `once` and the helper that it calls.

    What is judged is the memory that both processes take at one moment, pages that several share divided among
    them (Pss of proc_pid_smaps(5)), read five times a second. Beside it stands the sum of the most that each had
    resident at any time (VmHWM of proc_pid_status(5)), which counts the pages of programs and libraries twice.
    """
    small, large = int(100_000 * scale), int(1_000_000 * scale)
    few, _ = _peaks(directory / "small", small)
    many, at_once = _peaks(directory / "large", large)
    sum_few, sum_many = sum(few.values()), sum(many.values())
    detail = f"the larger alone {max(many.values()):.0f} MB, {len(many)} processes"
    yield at_most(f"backlog of {large:,}: MB of memory of both processes", at_once, 100, detail)
    detail = f"{sum_many:.0f} MB; {sum_few:.0f} MB with {small:,}"
    yield at_most("backlog: memory over that with a tenth of it", sum_many / sum_few, 1.15, detail)
    yield note("backlog: MB resident, each process at its most, shared pages twice", sum_many, "")


def _peaks(home: Path, count: int) -> tuple[dict[int, float], float]:
    """The most memory that each process of a `once` had, and the most that all had at one moment, in MB."""
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
    at_once, looks = 0.0, 0
    while process.poll() is None:
        pids = (process.pid, *_children(process.pid))
        with contextlib.suppress(OSError, ValueError):  # one ended meanwhile, or has no memory any more
            for pid in pids:
                peaks[pid] = max(peaks.get(pid, 0.0), _megabytes(pid, "status", "VmHWM"))
            if looks % _RARELY == 0:
                at_once = max(at_once, sum(_megabytes(pid, "smaps_rollup", "Pss") for pid in pids))
        looks += 1
        time.sleep(_LOOK)
    took = time.perf_counter() - began
    answer = process.communicate()[0]
    assert process.returncode == 0 and json.loads(answer)["collected"] == count // CONTAINERS * CONTAINERS, answer
    say(f"backlog: {count:,} collected in {took:.0f} s, {count / took:,.0f}/s; peaks {_words(peaks)}; clearing up")
    shutil.rmtree(home)
    return peaks, at_once


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _megabytes(pid: int, file: str, field: str) -> float:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(pid)


def _words(peaks: dict[int, float]) -> str:
    return " + ".join(f"{peak:.0f} MB" for peak in peaks.values())
