"""Decide whether a file has been left alone long enough to be finished."""

from __future__ import annotations

import os
import time

from sharedvol.publishing.mark import is_marked

_OBSERVED = 65_536

_STEP = 0.02
"""Seconds by which the clock has to gain on the monotonic clock to count as set. NTP changes the rate of both alike."""


class _Clock:
    """The time of day, and how long ago it was set forward.

    A clock that is set forward makes every file look older than it is, so an age counts only as far back as the last
    such step. A suspended system looks the same, because CLOCK_MONOTONIC stops meanwhile; see clock_gettime(2).
    """

    def __init__(self) -> None:
        self._ahead = self._read()[0]
        self._set_at = float("-inf")  # when it was set forward, by the monotonic clock

    def age(self, time_ns: int) -> float:
        """Return the seconds since ``time_ns``, or since the clock was set forward; negative for the future."""
        ahead, now = self._read()
        if ahead > self._ahead + _STEP:
            self._set_at = now
        self._ahead = ahead
        return min(now + ahead - time_ns / 1e9, now - self._set_at)

    def _read(self) -> tuple[float, float]:
        """Return by how much the time of day is ahead of the monotonic clock, and the latter."""
        while True:
            before, wall, now = time.monotonic(), time.time(), time.monotonic()
            if now - before < _STEP / 2:  # the process did not have to wait between the two
                return wall - now, now


class QuietTime:
    """The quiet time, measured by the file's change time and, where the clock jumped, by watching the file.

    "Closed" is not "finished": a log that a shell appends to is closed after every line, and the kernel closes the
    files of a killed writer. A file is finished when its writer says so, which `publish` does by a mark, or when
    nothing has changed for a while. The change time shows every change, and no process can set it.

    Args:
        seconds: the quiet time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # What was seen unchanged since when, and seen at all since when, by the monotonic clock. Only of files
        # that look recent, so it does not grow with the backlog; the older half is of the pass before.
        self._seen: dict[tuple[int, int], tuple[tuple[int, int, int], float, float]] = {}
        self._before: dict[tuple[int, int], tuple[tuple[int, int, int], float, float]] = {}
        self._clock = _Clock()

    def new_pass(self) -> None:
        """A scan begins: forget the files that the last one did not see."""
        self._before, self._seen = self._seen, {}

    def remaining(self, info: os.stat_result, *, trust_mark: bool, seconds: float | None = None) -> float:
        """Return the seconds until the file is finished if it stays as it is; 0 if it is finished.

        Args:
            info: the file's status now.
            trust_mark: whether the mark of a published file counts as the writer's word. Not where no lease is
                available: there only the quiet time counts.
            seconds: another quiet time than the usual.
        """
        if trust_mark and is_marked(info.st_mtime_ns, info.st_size):
            return 0.0
        return self.unchanged(info, seconds)

    def unchanged(self, info: os.stat_result, seconds: float | None = None) -> float:
        """Return the seconds until the file has been unchanged for the quiet time.

        Args:
            info: the file's status now.
            seconds: another quiet time than the usual.
        """
        wanted = self.seconds if seconds is None else seconds
        age = self._clock.age(info.st_ctime_ns)
        if age >= wanted:
            return 0.0
        # By the clock it is recent, which stays so after the clock was set back. So watch it as well.
        key = (info.st_dev, info.st_ino)
        state = (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        now = time.monotonic()
        known = self._known(key)
        first = known[1] if known and known[0] == state else now
        if len(self._seen) < _OBSERVED:
            self._seen[key] = (state, first, known[2] if known else now)
        watched = now - first
        if watched >= wanted:
            return 0.0
        return min(wanted - watched, wanted - age) if age >= 0 else wanted - watched

    def watched(self, info: os.stat_result) -> float:
        """Seconds since a file was first seen changing."""
        key = (info.st_dev, info.st_ino)
        known = self._known(key)
        return time.monotonic() - known[2] if known else 0.0

    def _known(self, key: tuple[int, int]) -> tuple[tuple[int, int, int], float, float] | None:
        return self._seen.get(key) or self._before.get(key)
