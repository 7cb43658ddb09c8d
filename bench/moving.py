"""The sidecar beside a bare loop of link and unlink, and beside mv and rsync."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.figures import Figure, Measured, at_least, at_most, note, reading, rounds, say
from bench.spool import SIDECAR, cpu, make, running, until_logged, volume

ROUNDS = 3
OURS, BARE, MV, RSYNC = "sharedvol-sidecar once", "bare link + unlink", "mv -n", "rsync"
SYNCED = "mv -n, then sync"


def moving(directory: Path, scale: float) -> Iterator[Measured]:
    """Files of 1 KiB on one file system, made durable, with catalog and digests as by default.

    Ours is the whole command, from its start to its end. Each round measures all of them one after the other, on the
    same files. What the others move is not looked at, and synced by one of them only, at the end: else a power cut
    may leave it empty.
    """
    count = int(100_000 * scale)
    repeated = rounds(ROUNDS, scale)
    start = _seconds_to_start(directory, repeated)
    movers: dict[str, Mover] = {BARE: _bare, OURS: _once, MV: _mv, SYNCED: _mv_and_sync, RSYNC: _rsync}
    if not shutil.which("rsync"):
        say("rsync is missing: scripts/install-bench-tools installs it")
        del movers[RSYNC]
    times: dict[str, list[float]] = {name: [] for name in movers}
    files = directory / "files"
    make(files, count)
    for number in range(1, repeated + 1):
        for name, mover in movers.items():
            took, files = _moved(mover, files, directory / f"{re.sub('[^a-z]', '', name)}{number}")
            times[name].append(took)
        rates = "; ".join(f"{name} {count / column[-1]:,.0f}/s" for name, column in times.items())
        say(f"moving, round {number} of {repeated}: {rates}")
    yield from _judged(count, times)
    whole = statistics.median(times[OURS])
    yield note(
        "moving: share of the time that is the process's start", start / whole, f"{start:.2f} s of {whole:.2f} s"
    )
    for what, flags in (("catalog", ("--catalog", "none")), ("digests", ("--digests", "false"))):
        without, files = _moved(partial(_once, flags=flags), files, directory / f"without-{what}")
        yield note(f"moving: times its own rate without {what}", whole / without, f"{count / without:,.0f}/s")
    for name, column in times.items():
        yield reading("moving", name, "rate", (count / took for took in column))


def _seconds_to_start(directory: Path, repeated: int) -> float:
    times = []
    for number in range(repeated + 1):
        empty = directory / f"empty{number}"
        empty.mkdir()
        times.append(_once(empty, directory / f"start{number}")[0])
    return statistics.median(times[1:])  # the first one compiles its modules


def _judged(count: int, times: dict[str, list[float]]) -> Iterator[Figure]:
    for name, words, limit in (
        (BARE, f"moving {count:,} files: share of bare link + unlink's rate", 0.4),
        (RSYNC, "moving: times rsync --remove-source-files' rate", 2),
    ):
        if name in times:
            ratios = [peer / ours for peer, ours in zip(times[name], times[OURS], strict=True)]
            ours, peer = (count / statistics.median(times[who]) for who in (OURS, name))
            detail = f"{ours:,.0f}/s; {name} {peer:,.0f}/s"
            yield at_least(words, statistics.median(ratios), limit, detail, ratios)


def idle(directory: Path, scale: float) -> Iterator[Figure]:
    """An idle `run`, beside one that has collected much before."""
    seconds = 10 * scale
    shares = []
    for files in (0, int(20_000 * scale)):
        home = directory / f"idle{files}"
        spool, collected = volume(home)
        if files:
            make(spool / "c1" / "results", files)
        with running(spool, collected, "--quiet", "0") as (process, log):
            until_logged(log, files)
            time.sleep(1)
            before = cpu(process.pid)
            time.sleep(seconds)
            shares.append((cpu(process.pid) - before) / seconds)
        shutil.rmtree(home)
    yield at_most("idle run: share of a core, nothing collected before", shares[0], 0.01, f"{seconds:g} s")
    yield at_most("idle run: share of a core, much collected before", shares[1], 0.01, f"{seconds:g} s")


Mover = Callable[[Path, Path], tuple[float, Path]]
"""Moves all files of a directory into one below the other; how long that took, and where they are."""


def _moved(mover: Mover, files: Path, home: Path) -> tuple[float, Path]:
    count = len(os.listdir(files))
    os.sync()
    took, there = mover(files, home)
    assert len(os.listdir(there)) == count, home
    return took, there


def _bare(source: Path, home: Path) -> tuple[float, Path]:
    home.mkdir()
    a, b = os.open(source, os.O_RDONLY), os.open(home, os.O_RDONLY)
    began = time.perf_counter()
    for entry in os.scandir(source):
        os.link(entry.name, entry.name, src_dir_fd=a, dst_dir_fd=b)
        os.unlink(entry.name, dir_fd=a)
    took = time.perf_counter() - began
    os.close(a)
    os.close(b)
    return took, home


def _once(source: Path, home: Path, flags: Sequence[str] = ()) -> tuple[float, Path]:
    """The whole command, with its start."""
    spool, collected = volume(home)
    count = len(os.listdir(source))
    (spool / "c1").mkdir()
    source.rename(spool / "c1" / "results")
    command = [*SIDECAR, "once", "--from", spool, "--to", collected, "--quiet", "0", "--json", *flags]
    began = time.perf_counter()
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    took = time.perf_counter() - began
    assert json.loads(answer)["collected"] == count, answer
    return took, next(collected.glob("results/*/c1"), collected)


def _mv(source: Path, home: Path) -> tuple[float, Path]:
    home.mkdir()
    command = ["find", str(source), "-type", "f", "-exec", "mv", "-n", "-t", str(home), "{}", "+"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began, home


def _mv_and_sync(source: Path, home: Path) -> tuple[float, Path]:
    took, there = _mv(source, home)
    began = time.perf_counter()
    subprocess.run(["sync", "-f", str(home)], check=True)  # syncfs(2): what the sidecar does for each batch
    return took + time.perf_counter() - began, there


def _rsync(source: Path, home: Path) -> tuple[float, Path]:
    began = time.perf_counter()
    subprocess.run(["rsync", "-a", "--remove-source-files", f"{source}/", f"{home}/"], check=True)
    return time.perf_counter() - began, home
