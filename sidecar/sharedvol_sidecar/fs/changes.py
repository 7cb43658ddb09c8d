"""Detect by its times that a directory has changed since it was read."""

from __future__ import annotations

import os
import time

from sharedvol_sidecar.fs.directory import Directory

_TICK_NS = 50_000_000
"""A newer time may also be that of a later change, because the clock of a file system ticks only every 10 ms."""


class Changes:
    """Says when to read a directory again.

    Args:
        directory: the directory, which the caller closes.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._stamp: tuple[int, int] | None = None

    def poll(self) -> bool:
        """Return whether the directory may have changed since the last call. If so, the caller reads it now."""
        info = os.fstat(self._directory.fd)
        stamp = info.st_mtime_ns, info.st_ctime_ns
        if stamp == self._stamp:
            return False
        # The time is read before the directory. A change within the same tick of the clock would not show in it.
        self._stamp = stamp if max(stamp) + _TICK_NS < time.time_ns() else None
        return True
