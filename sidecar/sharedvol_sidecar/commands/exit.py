"""What the commands have in common: how they print and fail, and how sizes and times are written and read."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

import click

from sharedvol.cli.terminal import write_error, write_line
from sharedvol.errors import describe, reduce_error
from sharedvol.text import message
from sharedvol_sidecar.humanize import plain

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


class CommandFailed(click.ClickException):
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


def unusable(error: OSError, code: int) -> CommandFailed:
    """Return the failure for an error of the operating system that nothing else explains."""
    where = f" with {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    remedy = _REMEDIES.get(error.errno or 0, "").format(user=os.geteuid())
    return CommandFailed(f"cannot continue{where}: {describe(error)}{remedy}", code)


def report(line: str) -> None:
    """Print a line about a problem on standard error."""
    write_line(message(line), sys.stderr)


def report_error(text: str) -> None:
    """Print why the command failed: one line on standard error."""
    write_error(plain(text), "sharedvol-sidecar")
