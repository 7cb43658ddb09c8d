"""Files that were renamed into place, as events told it.

A rename after the last write shows in a file's times, unless both were in one tick of the kernel's clock (some
milliseconds): then the times are equal, and the quiet time would have to pass. An event tells them apart.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict

from sharedvol_sidecar.directories import Directory

_REMEMBERED = 65_536


class Placed:
    """What was renamed into which directory, and when that was heard."""

    def __init__(self) -> None:
        self._heard: OrderedDict[tuple[tuple[int, int], str], int] = OrderedDict()

    def add(self, directory: tuple[int, int], name: str) -> None:
        """A file got its name by a rename.

        Args:
            directory: its device and inode.
            name: the file's name in it.
        """
        self._heard[directory, name] = time.time_ns()
        if len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)

    def __call__(self, directory: Directory, name: str, info: os.stat_result) -> bool:
        """Whether that was a file's last change: it has not been written since."""
        if not self._heard:
            return False
        heard = self._heard.pop((directory.key, name), None)
        if heard is None or info.st_mtime_ns > heard:
            return False
        self._heard[directory.key, name] = heard  # its writer may have it open still: until it moves
        return True
