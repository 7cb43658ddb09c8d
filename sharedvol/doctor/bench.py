"""Where an experiment is made: two sides in one room."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from sharedvol.doctor.report import Result
from sharedvol.doctor.side import Side, do, number


class Bench:
    """Two sides that work in the same room.

    Args:
        a: one side, always a process of this machine.
        b: the other: of this machine too, or a peer's, or one that sees the room through another mount.
        pause: seconds after which a side that has not answered is taken to wait.
        numbers: of the files, so that no name is used twice.
    """

    def __init__(self, a: Side, b: Side, pause: float = 0.05, numbers: itertools.count[int] | None = None) -> None:
        self.a, self.b, self.pause = a, b, pause
        self.slack = 5.0  # seconds for what limits itself in time
        self.numbers = numbers or itertools.count(1)

    def name(self) -> str:
        """A name that is in nobody's use."""
        return f"f{next(self.numbers)}"

    def shared(self, content: str = "") -> tuple[str, int, int]:
        """A new file's name, and a handle of it that either side can write to."""
        name = self.name()
        a = number(do(self.a, "open", name=name, how="create"))
        if content:
            do(self.a, "write", file=a, text=content)
        return name, a, number(do(self.b, "open", name=name, how="change"))

    def made(self, side: Side, content: str) -> str:
        """A new closed file's name."""
        name = self.name()
        handle = number(do(side, "open", name=name, how="create"))
        do(side, "write", file=handle, text=content)
        do(side, "close", file=handle)
        return name

    def content(self, side: Side, name: str) -> object:
        """What a side reads in a file that it opens anew."""
        handle = number(do(side, "open", name=name, how="read"))
        try:
            return do(side, "read", file=handle)
        finally:
            do(side, "close", file=handle)


class Experiment(NamedTuple):
    """An experiment.

    Attributes:
        id: of its line.
        make: makes it.
        between: whether it says something across mounts and containers too.
    """

    id: str
    make: Callable[[Bench], Result]
    between: bool = True
