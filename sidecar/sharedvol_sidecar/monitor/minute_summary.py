"""One line of the log a minute: what was collected, and how long it waited."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.event import Event

EVERY: Final = 60.0
"""Seconds between two summaries, at least."""


class MinuteSummary:
    """Adds up what happened since the last summary.

    Args:
        every: seconds between two summaries, at least.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, every: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = EVERY if every is None else every, clock
        self._last = clock() - self._every  # the first one comes at once, and shows that the service works
        self._moved, self._lag = PassCounts(), 0.0

    def add(self, counts: PassCounts) -> None:
        """Count what a pass, or a step of following, has done."""
        self._moved.add_moved(counts)

    def event(self, event: Event) -> None:
        """Take the lag of a collected file."""
        if event.age is not None:
            self._lag = max(self._lag, event.age)

    def take(self, at_once: bool = False) -> tuple[PassCounts, float] | None:
        """Return what happened since the last summary, and the longest lag in seconds; None if it is not time yet.

        None also if nothing happened.

        Args:
            at_once: it is the end: do not wait for the minute.
        """
        if self._moved == PassCounts() or not (at_once or self._clock() - self._last >= self._every):
            return None
        found = self._moved, self._lag
        self._last, self._moved, self._lag = self._clock(), PassCounts(), 0.0
        return found
