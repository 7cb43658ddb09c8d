"""How fast files may move: a token bucket of bytes."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """Spreads bytes over time. What was moved at once is waited for afterwards, so nothing is cut.

    Args:
        rate: bytes a second; 0 is no limit.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._whole = self._rate = rate
        self._clock = clock
        self._free_at = clock()

    def share(self, parts: int) -> None:
        """From now on so many processes have an equal part each."""
        self._rate = self._whole / parts

    @property
    def at_once(self) -> float:
        """Bytes that may move in one go, so that a pause is never long: those of a second."""
        return self._rate or float("inf")

    def spend(self, count: int) -> float:
        """Account for bytes that were moved. Returns the seconds to wait before more are."""
        if not self._rate:
            return 0.0
        now = self._clock()
        # What was not used in quiet times is not saved up.
        self._free_at = max(now, self._free_at) + count / self._rate
        return self._free_at - now
