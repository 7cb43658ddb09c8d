"""The sidecar beside a bare loop of link and unlink, and beside rsync."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, at_least, at_most, note, say
from bench.spool import SIDECAR, cpu, make, running, until_logged, volume

ROUNDS = 3


def moving(directory: Path, scale: float) -> Iterator[Figure]:
    """Files of 1 KiB on one file system, made durable, with catalog and digests as by default.

    Ours is the whole command, from its start to its end. Each round measures all of them one after the other.
    """
    count = int(100_000 * scale)
    _once(directory / "start", 0)  # compiles its modules
    start = statistics.median(_once(directory / "start", 0) for _ in range(ROUNDS))
    shares, times, wholes, details = [], [], [], []
    for number in range(1, ROUNDS + 1):
        bare = _bare(directory / "bare", count)
        ours = _once(directory / "ours", count)
        peer = _rsync(directory / "rsync", count) if shutil.which("rsync") else None
        shares.append(bare / ours)
        wholes.append(ours)
        details.append(f"{count / ours:,.0f}/s; bare {count / bare:,.0f}/s")
        if peer is not None:
            times.append(peer / ours)
            details[-1] += f"; rsync {count / peer:,.0f}/s"
        say(f"moving, round {number} of {ROUNDS}: {details[-1]}")
    detail = _middle(shares, details)
    yield at_least(
        f"moving {count:,} files: share of bare link + unlink's rate", statistics.median(shares), 0.4, detail
    )
    if times:
        value = statistics.median(times)
        yield at_least("moving: times rsync --remove-source-files' rate", value, 2, _middle(times, details))
    else:
        say("rsync is missing: scripts/install-bench-tools installs it")
    whole = statistics.median(wholes)
    yield note(
        "moving: share of the time that is the process's start", start / whole, f"{start:.2f} s of {whole:.2f} s"
    )
    for what, flags in (("catalog", ("--catalog", "none")), ("digests", ("--digests", "false"))):
        with_it, without = _once(directory / "ours", count), _once(directory / "ours", count, *flags)
        yield note(f"moving: times its own rate without {what}", with_it / without, f"{count / without:,.0f}/s")


def idle(directory: Path, scale: float) -> Iterator[Figure]:
    """An idle `run`, beside one that has collected much before."""
    seconds = 20 * scale
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


def _middle(values: list[float], details: list[str]) -> str:
    return details[sorted(range(len(values)), key=lambda index: values[index])[len(values) // 2]]


def _bare(home: Path, count: int) -> float:
    source, target = home / "source", home / "target"
    make(source, count)
    os.sync()
    target.mkdir()
    a, b = os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)
    began = time.perf_counter()
    for entry in os.scandir(source):
        os.link(entry.name, entry.name, src_dir_fd=a, dst_dir_fd=b)
        os.unlink(entry.name, dir_fd=a)
    took = time.perf_counter() - began
    os.close(a)
    os.close(b)
    shutil.rmtree(home)
    return took


def _once(home: Path, count: int, *flags: str) -> float:
    """Seconds that the whole command takes, with its start."""
    spool, collected = volume(home)
    make(spool / "c1" / "results", count)
    os.sync()
    began = time.perf_counter()
    answer = subprocess.run(
        [*SIDECAR, "once", "--from", spool, "--to", collected, "--quiet", "0", "--json", *flags],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    took = time.perf_counter() - began
    assert json.loads(answer)["collected"] == count, answer
    shutil.rmtree(home)
    return took


def _rsync(home: Path, count: int) -> float:
    source, target = home / "source", home / "target"
    make(source, count)
    os.sync()
    began = time.perf_counter()
    subprocess.run(["rsync", "-a", "--remove-source-files", f"{source}/", f"{target}/"], check=True)
    took = time.perf_counter() - began
    shutil.rmtree(home)
    return took
