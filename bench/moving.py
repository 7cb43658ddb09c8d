"""The sidecar beside a bare loop of link and unlink."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, at_least, at_most, note, say

_SIDECAR = (sys.executable, "-m", "sharedvol_sidecar")


def moving(directory: Path, scale: float) -> Iterator[Figure]:
    """Files of 1 KiB on one file system, made durable."""
    count = int(100_000 * scale)
    ratios, details, peaks = [], [], []
    rsync: list[float] = []
    for number in range(3):
        bare = _bare(directory / f"bare{number}", count)
        ours, peak = _once(directory / f"ours{number}", count)
        ratios.append(bare / ours)
        peaks.append(peak)
        details.append(f"{count / ours:,.0f}/s; bare {count / bare:,.0f}/s")
        say(f"moving, round {number + 1} of 3: {details[-1]}")
        if number == 0 and shutil.which("rsync"):
            rsync.append(_rsync(directory / "rsync", count) / ours)
    middle = sorted(range(3), key=lambda index: ratios[index])[1]
    yield at_least(f"moving {count:,} files: share of bare link + unlink's rate", ratios[middle], 0.5, details[middle])
    for ratio in rsync:
        yield note("moving: times rsync --remove-source-files' rate", ratio, "")
    small = _once(directory / "small", max(2_000, count // 10))[1]
    peak = statistics.median(peaks)
    yield at_most(
        "memory: peak with the backlog over peak with a tenth of it",
        peak / small,
        1.1,
        f"{peak:.0f} MB; {small:.0f} MB",
    )


def idle(directory: Path, scale: float) -> Iterator[Figure]:
    """An idle `run`, beside one that has collected much before."""
    seconds = 20 * scale
    shares = []
    for files in (0, int(20_000 * scale)):
        home = directory / f"idle{files}"
        spool, collected = _volume(home)
        if files:
            _make(spool / "c1" / "results", files)
        process = subprocess.Popen(
            [*_SIDECAR, "run", "--from", spool, "--to", collected, "--quiet", "0", "--listen", "off"],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            left = files
            while left > 0 or not files:
                line = json.loads(process.stdout.readline())
                left -= line.get("files", 0)
                if not files:
                    break
            time.sleep(1)
            before = _cpu(process.pid)
            time.sleep(seconds)
            shares.append((_cpu(process.pid) - before) / seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        shutil.rmtree(home)
    yield at_most("idle run: share of a core, nothing collected before", shares[0], 0.01, f"{seconds:g} s")
    yield at_most("idle run: share of a core, much collected before", shares[1], 0.01, f"{seconds:g} s")


def _volume(home: Path) -> tuple[Path, Path]:
    spool, collected = home / "spool", home / "collected"
    spool.mkdir(parents=True)
    collected.mkdir()
    return spool, collected


def _make(directory: Path, count: int) -> None:
    directory.mkdir(parents=True)
    data = b"x" * 1024
    fd = os.open(directory, os.O_RDONLY)
    for number in range(count):
        file = os.open(f"job_{number}.json", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(file, data)
        os.close(file)
    os.close(fd)
    os.sync()


def _bare(home: Path, count: int) -> float:
    source, target = home / "source", home / "target"
    _make(source, count)
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


def _once(home: Path, count: int) -> tuple[float, float]:
    """Seconds, the whole command with its start, and its peak memory in MB (helper included, the larger counts)."""
    spool, collected = _volume(home)
    _make(spool / "c1" / "results", count)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*_SIDECAR, "once", "--from", spool, "--to", collected, "--quiet", "0", "--json"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    assert process.returncode == 0 and json.loads(answer)["collected"] == count, answer
    shutil.rmtree(home)
    return took, usage.ru_maxrss / 1000


def _rsync(home: Path, count: int) -> float:
    source, target = home / "source", home / "target"
    _make(source, count)
    began = time.perf_counter()
    subprocess.run(["rsync", "-a", "--remove-source-files", f"{source}/", f"{target}/"], check=True)
    took = time.perf_counter() - began
    shutil.rmtree(home)
    return took


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
