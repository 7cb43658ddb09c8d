"""Standard output as the service's log: a line that cannot be written is counted, and never ends the service.

A reader that is gone, a full disk and a closed descriptor fail at once. A reader that stopped reading lets a pipe fill
up: the service waits for it once, for `PATIENCE` seconds, and then loses lines until there is room. When writing works
again, one line says how many were lost.
"""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sharedvol.errors import describe

PATIENCE: Final = 1.0
"""Seconds that a line may wait for room, if the line before was written."""

_AT_ONCE: Final = select.PIPE_BUF  # bytes that a pipe which poll(2) calls writable takes without blocking, pipe(7)


@dataclass(frozen=True, slots=True)
class LogState:
    """How well the log is written.

    Attributes:
        lost: lines that could not be written since the start.
        problem: why the last line was not written; empty if it was.
        since: when that began, in seconds since 1970.
    """

    lost: int = 0
    problem: str = ""
    since: float = 0.0


class LogOutput:
    """A file for a logger, whose `write` never raises an error of the operating system and blocks for a second at most.

    Any thread may write. A line is written whole, or the next one begins on a line of its own.

    Args:
        fd: where the lines go; None if there is nothing open.
        patience: seconds that a line may wait for room.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, fd: int | None, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._fd, self._patience, self._clock = fd, patience, clock
        self._lock = threading.Lock()
        self._torn = False
        self._unreported = 0
        self.state = LogState()
        """Replaced, never changed: any thread may read it."""

    def write(self, text: str) -> int:
        """Write lines, or count them as lost."""
        with self._lock:
            if (not self._unreported or self._report()) and self._send(text.encode("utf-8", "backslashreplace")):
                if self.state.problem:
                    self.state = LogState(self.state.lost)
            else:
                lines = text.count("\n") or 1
                self._unreported += lines
                since = self.state.since if self.state.problem else time.time()
                self.state = LogState(self.state.lost + lines, self._problem, since)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is written at once."""

    _problem = ""

    def _report(self) -> bool:
        """Say how many lines were lost. Return False if that cannot be written either."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = {"lost": self._unreported, "problem": self._problem, "event": "log_lost", "level": "warning"}
        if not self._send(json.dumps({**line, "timestamp": now}).encode() + b"\n"):
            return False
        self._unreported = 0
        return True

    def _send(self, data: bytes) -> bool:
        """Write all of it, on a line of its own. Return False, and remember why, if that is not possible."""
        if self._fd is None:
            self._problem = "standard output is closed"
            return False
        if self._torn:
            data = b"\n" + data
        # A line before that could not be written has waited already.
        end = self._clock() + (0.0 if self.state.problem else self._patience)
        view, torn = memoryview(data), self._torn
        try:
            while view:
                if not _has_room(self._fd, max(0.0, end - self._clock())):
                    self._problem = "its reader does not read"
                    return False
                try:
                    count = os.write(self._fd, view[:_AT_ONCE])
                except BlockingIOError:  # a non-blocking pipe with less room than that
                    if self._clock() >= end:
                        self._problem = "its reader does not read"
                        return False
                    continue
                torn = torn or count > 0
                view = view[count:]
            torn = False
            return True
        except OSError as error:
            self._problem = "its reader is gone (EPIPE)" if error.errno == errno.EPIPE else describe(error)
            return False
        finally:
            self._torn = torn  # also where a signal ends us in between


def _has_room(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))  # true of an error as well, which the write then raises


def standard_output() -> int | None:
    """Return the descriptor of standard output; None if it was closed when the process began.

    The number may be of another file by then, which no line may be written into.
    """
    try:
        return sys.stdout.fileno() if sys.__stdout__ is not None else None
    except (OSError, ValueError):  # a stream without a descriptor
        return None
