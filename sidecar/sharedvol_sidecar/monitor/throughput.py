"""How much was collected in each minute of the last hour."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MINUTES = 60
_STEP = 10.0
_STEPS_A_MINUTE = 6


@dataclass(frozen=True, slots=True)
class Minute:
    """What was collected in a minute."""

    files: int
    bytes: int


class Throughput:
    """Sums of ten seconds each, for an hour; never more than 360.

    A minute is six of them, the one that is under way included: it moves with the clock, and does not begin
    anew at 0 with each full minute.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, int]] = deque(maxlen=MINUTES * _STEPS_A_MINUTE)

    def add(self, now: float, files: int, count: int) -> None:
        """Count files and bytes that were collected by ``now``, seconds of a monotonic clock."""
        if not files and not count:
            return
        step = int(now // _STEP)
        if self._steps and self._steps[-1][0] == step:
            _, files_before, count_before = self._steps.pop()
            files, count = files + files_before, count + count_before
        self._steps.append((step, files, count))

    def minutes(self, now: float) -> tuple[Minute, ...]:
        """The last 60 minutes, the oldest first."""
        files, counts = [0] * MINUTES, [0] * MINUTES
        last = int(now // _STEP)
        for step, some_files, some_bytes in self._steps:
            ago = (last - step) // _STEPS_A_MINUTE
            if ago < MINUTES:
                files[ago] += some_files
                counts[ago] += some_bytes
        return tuple(Minute(*pair) for pair in zip(reversed(files), reversed(counts), strict=True))
