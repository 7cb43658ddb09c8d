"""Print the lines of commands in any encoding, report output that cannot be written, and show progress."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from sharedvol.errors import describe
from sharedvol.text import escape_unprintable, message

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

EXIT_ERROR: Final = 1
EXIT_OUTPUT: Final = 74  # EX_IOERR of sysexits.h

_PATIENCE: Final = 2.0  # seconds before progress is shown
_LONGEST: Final = 160  # characters of progress: a line that wraps cannot be overwritten


class OutputError(Exception):
    """Standard output cannot be written. Not a `SharedVolError`: commands report those in their own words."""


def conclude(program: str, command: Callable[[], int]) -> int:
    """Run a command, and return its exit code: 74 with one line on standard error if its output cannot be written.

    A reader that went away (``ls | head``) gets no message, and the exit code 1. Standard error never ends the command.

    Args:
        program: the name that messages begin with.
        command: returns or raises (`SystemExit`) the exit code.
    """
    with _checked_streams():
        try:
            try:
                return command()
            finally:
                sys.stdout.flush()
        except OutputError as error:
            write_error(f"cannot write the output: {error}; make room where it goes", program)
            return EXIT_OUTPUT
        except BrokenPipeError:
            return EXIT_ERROR


@contextlib.contextmanager
def _checked_streams() -> Iterator[None]:
    """Check each write to the standard streams of the process. Those that were closed become the null device."""
    before = sys.stdout, sys.stderr
    try:
        sys.stdout = _checked(sys.stdout, 1) if sys.stdout is sys.__stdout__ else sys.stdout
        sys.stderr = _checked(sys.stderr, 2) if sys.stderr is sys.__stderr__ else sys.stderr
        yield
    finally:
        sys.stdout, sys.stderr = before


def _checked(stream: TextIO | None, number: int) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return open(os.devnull, "w", encoding="utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number)),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _Output(io.FileIO):
    """A standard stream of which only the first error counts. Later writes do nothing: Python flushes when it ends."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._failed:
            try:
                while (count := super().write(data)) is None:  # a pipe that does not block, and is full
                    select.select((), (self,), ())
                return count
            except OSError as error:
                self._failed = True
                if self.fileno() == 1:
                    raise error if isinstance(error, BrokenPipeError) else OutputError(describe(error)) from None
        return memoryview(data).nbytes


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Print one line, by default on standard output.

    Everything that a command prints goes through here: what is not printable, or what the stream's encoding lacks,
    becomes an escape. A name in the line cannot drive the terminal or begin another line.
    """
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    stream.write(f"{escape_unprintable(line)}\n".encode(encoding, "backslashreplace").decode(encoding))


def write_error(text: str, program: str = "sharedvol") -> None:
    """Print an error of one line on standard error, without the credentials of a URL in it."""
    write_line(f"{program}: {message(text)}", sys.stderr)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors repeat arguments without control characters and credentials."""

    def error(self, text: str) -> NoReturn:
        """Print usage and error, and exit with 2."""
        super().error(message(text))


class Progress:
    """Shows on a terminal, in one line that is overwritten, how far a command is.

    Args:
        stream: the terminal. Progress is not shown in a file.
        clock: a monotonic clock, in seconds.
        every: seconds between two texts, at least.
        delay: seconds before the first text, so that a short command shows none.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        every: float = 0.0,
        delay: float = _PATIENCE,
    ) -> None:
        self._stream, self._clock, self._every = stream, clock, every
        self._terminal = stream.isatty()
        self._next = clock() + delay
        self._shown = False

    def __call__(self, text: str) -> None:
        """Show a text instead of the last one."""
        if not self._terminal or (now := self._clock()) < self._next:
            return
        self._next = now + self._every
        self._shown = True
        text = escape_unprintable(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")
        self._write(f"\r\x1b[K{text}")

    def end(self, *, keep: bool = False) -> None:
        """Remove the line, or keep it and begin another. The next text shows it again."""
        if self._shown:
            self._shown = False
            self._write("\n" if keep else "\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
