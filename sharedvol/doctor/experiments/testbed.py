"""The place where an experiment runs: two sides in one room."""

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
"""Errors of exhausted resources, which say nothing about the feature that was tried."""


class TestBed:
    """Two sides that work in the same room.

    Args:
        a: one side, always a process on this machine.
        b: the other side: a process on this machine, a peer's process, or one that uses another mount.
        tidy: removes the files of the last experiment.
        pause: seconds after which a side that has not answered counts as waiting.
        numbers: a counter for file names, so that no name is used twice.
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
        self.slack = 5.0  # extra seconds for loops, which limit their own time
        self.arriving = ARRIVING
        self.numbers = numbers or itertools.count(1)

    def name(self) -> str:
        """Return an unused name."""
        return f"f{next(self.numbers)}"

    def turned(self) -> TestBed:
        """Return a test bed with the sides exchanged, because across mounts the two directions may differ."""
        return TestBed(self.b, self.a, self.tidy, self.pause, self.numbers)

    def at_once(self, first: tuple[str, dict[str, object]], second: tuple[str, dict[str, object]]) -> list[object]:
        """Run two loops (loops.py) at the same time, one on each side, and return their results."""
        a, b = self.name(), self.name()
        self.b.start(second[0], **second[1], meeting=[b, a, self.arriving])
        self.a.start(first[0], **first[1], meeting=[a, b, self.arriving])
        return [side.finish(self.arriving + LOOPING + self.slack) for side in (self.a, self.b)]

    def shared(self, content: str = "") -> tuple[str, int, int]:
        """Create a file and return its name and a handle of each side for writing."""
        name = self.name()
        a = number(do(self.a, "open", name=name, how="create"))
        if content:
            do(self.a, "write", file=a, text=content)
        return name, a, number(do(self.b, "open", name=name, how="change"))

    def made(self, side: Side, content: str) -> str:
        """Create and close a file, and return its name."""
        name = self.name()
        handle = number(do(side, "open", name=name, how="create"))
        do(side, "write", file=handle, text=content)
        do(side, "close", file=handle)
        return name

    def content(self, side: Side, name: str) -> object:
        """Open a file on one side and return what that side reads."""
        handle = number(do(side, "open", name=name, how="read"))
        try:
            return do(side, "read", file=handle)
        finally:
            do(side, "close", file=handle)


def each_way(make: Callable[[TestBed], Result]) -> Callable[[TestBed], Result]:
    """Run an experiment in both directions."""

    def both(bed: TestBed) -> Result:
        result = make(bed)
        return result if result.verdict != "ok" else make(bed.turned())

    return both


def refused(error: OSError, words: str) -> Result:
    """Return `degraded` for an error. Raise the error if it only says that a resource is exhausted."""
    if error.errno in NO_ROOM:
        raise error
    return degraded(f"{words}: {describe(error)}")


class Experiment(NamedTuple):
    """An experiment.

    Attributes:
        id: the id of its line.
        make: runs the experiment.
        between: whether it also makes sense across mounts and containers.
    """

    id: str
    make: Callable[[TestBed], Result]
    between: bool = True
