"""The followed logs that stay open while a service has no collector: from a fault until its next try.

A collector closes everything at a fault, and the next one opens what it finds. It does not find a log that was deleted
or moved while its writer had it open: only the descriptor reaches it. So the service keeps these descriptors, and with
them the live copies' descriptors, which hold the marks for other sidecars (see `follow_marks`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sharedvol_sidecar.follow.store import FollowedLog


@dataclass(slots=True)
class _Open:
    """A log, its live copy (-1 where it is closed), and what is known of the log."""

    fd: int
    live: int
    in_sight: bool
    is_hidden: bool


class OpenLogs:
    """Descriptors on their way from one collector to the next. They belong to this object meanwhile."""

    def __init__(self) -> None:
        self._logs: dict[str, _Open] = {}

    def take(self, log: FollowedLog) -> None:
        """Take over the descriptors of a log that is open, so that closing it closes nothing."""
        self._drop(log.id)
        self._logs[log.id] = _Open(log.fd, log.live, log.in_sight, log.is_hidden)
        log.fd = log.live = -1

    @contextlib.contextmanager
    def give(self, log: FollowedLog) -> Iterator[None]:
        """Give a log its descriptor back. The marks on its copy stay until the end of the block.

        The copy is for the next collector to open: its directory may be another one.
        """
        kept = self._logs.pop(log.id, None)
        if kept is None or log.fd >= 0:
            _close(kept)
            yield
            return
        log.fd, kept.fd = kept.fd, -1
        log.in_sight = kept.in_sight
        try:
            yield
        finally:
            _close(kept)

    def close_copies(self) -> None:
        """Close what is open in the destination, and so take the marks back."""
        for kept in self._logs.values():
            if kept.live >= 0:
                os.close(kept.live)
                kept.live = -1

    def close(self) -> int:
        """Close all. Return how many logs no scan will find again, because they were deleted or moved."""
        hidden = sum(kept.is_hidden for kept in self._logs.values())
        for id in list(self._logs):
            self._drop(id)
        return hidden

    def _drop(self, id: str) -> None:
        _close(self._logs.pop(id, None))


def _close(kept: _Open | None) -> None:
    if kept is not None:
        for fd in (kept.fd, kept.live):
            if fd >= 0:
                os.close(fd)
