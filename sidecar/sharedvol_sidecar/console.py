"""What the commands have in common: how they print and fail, and how sizes and times are written and read."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

import click

from sharedvol.errors import describe, reduce_error
from sharedvol.printable import message
from sharedvol.terminal import write_error, write_line
from sharedvol_sidecar.text import plain

EXIT_FAILED = 1
EXIT_CONFIG = 2

_PERMIT = "; give user {user} read and write access to it"
_ROOM = "; make room there"
_REMEDIES = {
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: "; mount it read-write",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
    errno.ENFILE: "; raise the limit of open files (fs.file-max)",
}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)


class Failure(click.ClickException):
    """One line on standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self._code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # a class variable there, for which there is one code
        return self._code

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)

    def show(self, file: Any = None) -> None:
        report_error(self.message)


def say(line: str) -> None:
    """Print a line on standard output. What is not printable in it becomes an escape.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: its reader is gone (``ls | head``).
    """
    write_line(line)
    sys.stdout.flush()


def say_json(record: Any) -> None:
    """Print a record as a line of JSON. What is not printable in it becomes an escape of JSON."""
    text = json.dumps(record, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    say(text)


def unusable(error: OSError, code: int) -> Failure:
    """Return the failure for an error of the operating system that nothing else explains."""
    where = f" with {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    remedy = _REMEDIES.get(error.errno or 0, "").format(user=os.geteuid())
    return Failure(f"cannot continue{where}: {describe(error)}{remedy}", code)


def report(line: str) -> None:
    """Print a line about a problem on standard error."""
    write_line(message(line), sys.stderr)


def report_error(text: str) -> None:
    """Print why the command failed: one line on standard error."""
    write_error(plain(text), "sharedvol-sidecar")


def time_words(time_ns: int) -> str:
    """A time for people and for JSON, in UTC: ``2026-01-31T14:25:30Z``; empty if no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return ""


def parse_duration(text: str) -> int | None:
    """``90s``, ``15m``, ``2h``, ``7d``, ``4w`` as nanoseconds; None if it is none."""
    found = _DURATION.fullmatch(text)
    return int(float(found[1]) * _SECONDS[found[2]] * 1_000_000_000) if found else None


def parse_moment(text: str, now_ns: int) -> int | None:
    """A date, a date with a time (UTC unless it says otherwise), or how long ago; as nanoseconds since 1970."""
    ago = parse_duration(text)
    if ago is not None:
        return now_ns - ago
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
