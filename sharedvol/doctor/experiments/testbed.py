"""Where an experiment is made: two sides in one room."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

from sharedvol.doctor.agent.limits import ARRIVING, LOOPING
from sharedvol.doctor.report import Result, degraded
from sharedvol.doctor.side import Side, do, number
from sharedvol.errors import describe

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing of what was tried."""


class TestBed:
    """Two sides that work in the same room.

    Args:
        a: one side, always a process of this machine.
        b: the other: of this machine too, or a peer's, or one that sees the room through another mount.
        tidy: removes the files of the last experiment.
        pause: seconds after which a side that has not answered is taken to wait.
        numbers: of the files, so that no name is used twice.
    """

    def __init__(
        self,
        a: Side,
        b: Side,
        tidy: Callable[[], object],
        pause: float = 0.05,
        numbers: itertools.count[int] | None = None,
    ) -> None:
        self.a, self.b, self.tidy, self.pause = a, b, tidy, pause
        self.slack = 5.0  # seconds for what limits itself in time
        self.arriving = ARRIVING
        self.numbers = numbers or itertools.count(1)

    def name(self) -> str:
        """A name that is in nobody's use."""
        return f"f{next(self.numbers)}"

    def turned(self) -> TestBed:
        """The same with the sides exchanged: across mounts, what one sees of the other need not be so in return."""
        return TestBed(self.b, self.a, self.tidy, self.pause, self.numbers)

    def at_once(self, first: tuple[str, dict[str, object]], second: tuple[str, dict[str, object]]) -> list[object]:
        """What two loops (loops.py) return that run at the same time: one of `a`, one of `b`."""
        a, b = self.name(), self.name()
        self.b.start(second[0], **second[1], meeting=[b, a, self.arriving])
        self.a.start(first[0], **first[1], meeting=[a, b, self.arriving])
        return [side.finish(self.arriving + LOOPING + self.slack) for side in (self.a, self.b)]

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


def each_way(make: Callable[[TestBed], Result]) -> Callable[[TestBed], Result]:
    """An experiment that is made in both directions."""

    def both(bench: TestBed) -> Result:
        result = make(bench)
        return result if result.verdict != "ok" else make(bench.turned())

    return both


def refused(error: OSError, words: str) -> Result:
    """Degraded by an error; raises it where it says nothing about the file system but that it is full."""
    if error.errno in NO_ROOM:
        raise error
    return degraded(f"{words}: {describe(error)}")


class Experiment(NamedTuple):
    """An experiment.

    Attributes:
        id: of its line.
        make: makes it.
        between: whether it says something across mounts and containers too.
    """

    id: str
    make: Callable[[TestBed], Result]
    between: bool = True
