"""The sidecar's command with a clock that can be set: ``python -m soak.sidecar PARENT RELEASE CLOCK ARGUMENT…``.

CLOCK is a file that holds the seconds by which the wall clock is off, as one double.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time

from support.soak.ending import check_release, end_with

OFFSET = struct.Struct("d")


def shift_clock(path: str) -> None:
    """Let `time.time` and `time.time_ns` be off by what the file says at each call."""
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), OFFSET.size, prot=mmap.PROT_READ)
    seconds, nanoseconds = time.time, time.time_ns

    def offset() -> float:
        return float(OFFSET.unpack_from(shared)[0])

    time.time = lambda: seconds() + offset()  # type: ignore[assignment]
    time.time_ns = lambda: nanoseconds() + int(offset() * 1e9)  # type: ignore[assignment]


def main() -> None:
    parent, release, clock, *arguments = sys.argv[1:]
    end_with(int(parent))
    check_release(release)
    shift_clock(clock)
    from sharedvol_sidecar.cli import main as command

    command(arguments, prog_name="sharedvol-sidecar")


if __name__ == "__main__":
    main()
