"""What commands print: lines in any encoding, and on a terminal one line that shows how far it is."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Final, NoReturn, TextIO

from sharedvol.printable import escape_unprintable, message

_PATIENCE: Final = 2.0  # seconds before progress is shown


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Print one line, by default on standard output.

    Everything that a command prints goes through here: what is not printable, or what the stream's encoding lacks,
    becomes an escape. A name in the line cannot drive the terminal or begin another line.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # the descriptor was closed before the command began
        return
    encoding = stream.encoding or "utf-8"
    stream.write(f"{escape_unprintable(line)}\n".encode(encoding, "backslashreplace").decode(encoding))


def write_error(text: str, program: str = "sharedvol") -> None:
    """Print an error of one line on standard error, without the credentials of a URL in it."""
    with contextlib.suppress(OSError):  # the exit code says that it failed, too
        write_line(f"{program}: {message(text)}", sys.stderr)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors repeat arguments without control characters and credentials."""

    def error(self, text: str) -> NoReturn:
        """Print usage and error, and exit with 2."""
        super().error(message(text))


class Progress:
    """Says on a terminal, in one line, how far it is, once it has taken a while.

    Args:
        stream: where to.
        clock: seconds that only go forward.
        every: seconds between two texts, at least.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float], every: float = 0.0) -> None:
        self._stream, self._clock, self._every = stream, clock, every
        self._terminal = stream.isatty()
        self._next = clock() + _PATIENCE
        self._shown = False

    def __call__(self, text: str) -> None:
        if not self._terminal or (now := self._clock()) < self._next:
            return
        self._next = now + self._every
        self._shown = True
        self._say(f"\r\x1b[K{escape_unprintable(text)}")

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            self._say("\r\x1b[K")

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
