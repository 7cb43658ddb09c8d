"""Files that could not be moved: counted, reported, and tried again, once at once and then less and less often."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sharedvol_sidecar.events import Events
from sharedvol_sidecar.transfer.item import Item

PAUSES = (1.0, 60.0)
"""Seconds until a file is tried again after its second failure, and at most; doubling in between."""

_REMEMBERED = 10_000


@dataclass(slots=True)
class PastFailure:
    """How often a file failed.

    Attributes:
        state: its size and time then; a file that was changed is tried at once.
        until: when it is tried again, by the monotonic clock.
        pause: seconds until then after the next failure.
        no_room: it failed because the destination has too little space.
        denied: the directory of the destination that may not be written, by which it failed; else empty.
    """

    state: tuple[int, int]
    until: float
    pause: float
    no_room: bool
    denied: str


class Retries:
    """Remembers the files that failed lately.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[int, int], PastFailure] = OrderedDict()

    def waiting(self, info: os.stat_result) -> PastFailure | None:
        """Return the failure of a file that is not to be tried yet."""
        known = self._failures.get((info.st_dev, info.st_ino)) if self._failures else None
        if known is None or known.state != _state(info) or self._clock() >= known.until:
            return None
        return known

    def failed(self, info: os.stat_result, no_room: bool, denied: str = "") -> None:
        """Record that a file could not be moved."""
        key, now = (info.st_dev, info.st_ino), self._clock()
        known = self._failures.pop(key, None)
        if known is None or known.state != _state(info):
            failure = PastFailure(_state(info), now, PAUSES[0], no_room, denied)
        else:
            failure = PastFailure(known.state, now + known.pause, min(2 * known.pause, PAUSES[1]), no_room, denied)
        self._failures[key] = failure
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)


class FailedFiles:
    """Counts and reports the files that cannot be moved.

    Args:
        events: receives them.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._denied: set[str] = set()
        self.retries = Retries()
        """When each is tried again."""

    def new_pass(self) -> None:
        """Begin a pass: denied directories are counted again."""
        self._denied.clear()

    def is_due(self, item: Item) -> bool:
        """Return whether a file is to be tried now. One that failed again and again is not tried in each pass."""
        failure = self.retries.waiting(item.info)
        if failure is None:
            return True
        self._events.still_failed()
        self._count(failure.no_room, failure.denied)
        return False

    def fail(self, item: Item, why: str) -> None:
        """Count and report a file that cannot be moved."""
        self._count(item.no_room, item.denied)
        self.retries.failed(item.info, item.no_room, item.denied)
        self._events.failed(item.candidate.path, why)

    def _count(self, no_room: bool, denied: str) -> None:
        """Count a lack of space, and a directory that may not be written once in a pass."""
        if no_room:
            self._events.no_room()
        if denied and denied not in self._denied:
            self._denied.add(denied)
            self._events.denied()


def _state(info: os.stat_result) -> tuple[int, int]:
    return info.st_size, info.st_mtime_ns
