"""Output of commands: lines in any encoding, errors of writing, and progress on a terminal."""

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
    """Standard output cannot be written. Not a `SharedVolError`, because commands report those by themselves."""


def conclude(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    If the output cannot be written, one line goes to standard error and the code is 74. If the program that reads the
    output has ended (``ls | head``), the code is 1, without a message. Errors of standard error are ignored.

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
            write_error(f"cannot write the output: {error}; free space where it is written", program)
            return EXIT_OUTPUT
        except BrokenPipeError:
            return EXIT_ERROR


@contextlib.contextmanager
def _checked_streams() -> Iterator[None]:
    """Check each write to the standard streams of the process. A closed stream becomes the null device."""
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
    """A standard stream that reports only its first error.

    Later writes do nothing, because Python flushes again when it ends.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._failed:
            try:
                while (count := super().write(data)) is None:  # a full pipe in non-blocking mode
                    select.select((), (self,), ())
                return count
            except OSError as error:
                self._failed = True
                if self.fileno() == 1:
                    raise error if isinstance(error, BrokenPipeError) else OutputError(describe(error)) from None
        return memoryview(data).nbytes


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Print one line, by default on standard output.

    Commands print everything with this function. A character that is not printable, or that the stream's encoding
    lacks, becomes an escape. So a name in the line can neither control the terminal nor start another line.
    """
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    stream.write(f"{escape_unprintable(line)}\n".encode(encoding, "backslashreplace").decode(encoding))


def write_error(text: str, program: str = "sharedvol") -> None:
    """Print an error in one line on standard error. Credentials in URLs are hidden."""
    write_line(f"{program}: {message(text)}", sys.stderr)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors show arguments without control characters and credentials."""

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
