"""What a replica does in a container of its own, as process 1, until SIGTERM.

This source is handed to the container's Python. It tells on standard output, in the engine's log: ``ready HOST PID``,
then for each number ``begun NUMBER`` and, when its result and its log lines are written, ``done NUMBER SHA256``; and
``taken PATH`` if somebody took the log that it has open.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from sharedvol import container_id, container_path, log_path, publish

LAST = 20_000
"""It ends after so many results, should nobody stop it."""

PAUSE = 1.5
"""Seconds without a write now and then, more than the sidecars' quiet time: their lease has to see the open log."""


def content(host: str, number: int) -> bytes:
    """A result like no other: of some kilobytes, now and then of a megabyte."""
    size = 1 << 20 if number % 97 == 0 else 1 + number * 7919 % 9000
    return hashlib.shake_256(f"{host} {number}".encode()).digest(size)


def line(host: str, number: int) -> bytes:
    return f"{number:08d} {host}\n".encode()


def name(host: str, number: int) -> str:
    """The file name of a result: of three kinds, see `write`."""
    return f"slow_{number}.bin" if number % 3 == 2 else f"job_{number}_{host}.bin"


def write(spool: Path, host: str, number: int) -> None:
    data = content(host, number)
    if number % 3 == 0:
        with publish(container_path(spool / "results", f"job_{number}.bin"), "wb") as file:
            file.write(data)
    elif number % 3 == 1:
        part = spool / "results" / f".{number}_{host}.part"
        part.write_bytes(data)
        part.rename(container_path(spool / "results", f"job_{number}.bin"))
    else:
        with open(spool / host / "results" / f"slow_{number}.bin", "wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.02)
            file.write(data[len(data) // 2 :])


def main() -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    spool, host = Path("/vol/spool"), container_id()
    for directory in (spool / "results", spool / "logs", spool / host / "results", spool / host / "logs"):
        directory.mkdir(parents=True, exist_ok=True)
    print("ready", host, os.getpid(), flush=True)
    path = log_path(spool / "logs")
    with open(path, "xb", buffering=0) as log:  # one log is open for life
        for number in range(1, LAST):
            if stopping:
                break
            print("begun", number, flush=True)
            write(spool, host, number)
            log.write(line(host, number))
            with open(spool / host / "logs" / "appended.log", "ab", buffering=0) as appended:  # the other as by >>
                appended.write(line(host, number))
            print("done", number, hashlib.sha256(content(host, number)).hexdigest(), flush=True)
            if number % 150 == 0:
                time.sleep(PAUSE)
                if not (path.exists() and path.samefile(f"/proc/self/fd/{log.fileno()}")):
                    print("taken", path, flush=True)


if __name__ == "__main__":
    main()
