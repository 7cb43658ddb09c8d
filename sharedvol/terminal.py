"""What commands print: lines in any encoding, and on a terminal one line that tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TextIO

_PATIENCE: Final = 2.0  # seconds before progress is shown


def write_line(line: str, stream: TextIO) -> None:
    """Print a line; what the stream's encoding lacks as an escape."""
    encoding = stream.encoding or "utf-8"
    stream.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))


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
        self._say(f"\r\x1b[K{text}")

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            self._say("\r\x1b[K")

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
