"""Spools to measure with: made, collected by a real process, and watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SIDECAR = (sys.executable, "-P", "-m", "sharedvol_sidecar")
LIMIT = 60.0
"""Seconds that anything may take before a measurement is given up."""


def volume(home: Path) -> tuple[Path, Path]:
    """A spool and a destination beside it."""
    spool, collected = home / "spool", home / "collected"
    spool.mkdir(parents=True)
    collected.mkdir()
    return spool, collected


def make(directory: Path, count: int, size: int = 1024) -> None:
    """Closed files in a directory that is made. They are not synced."""
    directory.mkdir(parents=True)
    data = b"x" * size
    fd = os.open(directory, os.O_RDONLY)
    for number in range(count):
        file = os.open(f"job_{number}.json", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(file, data)
        os.close(file)
    os.close(fd)


def cpu(pid: int) -> float:
    """Seconds of processor that a process has used, by all of its threads; proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(
    spool: Path, collected: Path, *args: str, program: Sequence[str] = SIDECAR, listen: str = "off"
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A `run` that has started, and the file with what it logs; it ends with the block."""
    log = spool.parent / "run.log"
    # A file, as a pipe that nobody reads would stop it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "run", "--from", spool, "--to", collected, "--listen", listen, "--verbose", *args], stdout=output
        )
    try:
        until(lambda: '"started"' in log.read_text() or process.poll() is not None, "the sidecar's start")
        yield process, log
        assert process.poll() is None, log.read_text()[-2000:]
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT)
    finally:
        process.kill()
        process.wait(LIMIT)


def logged(log: Path) -> int:
    """How many files a `run` says it has collected."""
    lines = log.read_text().splitlines()
    return sum(line.get("files", 0) for line in map(json.loads, lines) if line["event"] == "collected")


def until_logged(log: Path, files: int) -> None:
    """Until a `run` says it has collected so many."""
    until(lambda: logged(log) == files, f"{files} files")


def until(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Look again until it is true.

    Raises:
        TimeoutError: it did not become true in so many seconds.
    """
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.005)
