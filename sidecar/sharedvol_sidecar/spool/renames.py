"""Files that were renamed into place, known from events.

A rename is the writer's word that the file is finished. The file's times cannot show it, because chmod, chown and touch
change the same times as a rename. Only an event proves a rename, and only until the file is opened for writing again.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable

from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.put_backs import PutBacks

_REMEMBERED = 65_536


class RenameLog:
    """Remembers which files were renamed into which directory and were not opened for writing since.

    Args:
        read_events: reads the events that wait and reports them here.
    """

    def __init__(self, read_events: Callable[[], None] = lambda: None) -> None:
        self._read_events = read_events
        self._watches: dict[tuple[int, int], int] = {}
        self._heard: OrderedDict[tuple[int, str], int] = OrderedDict()

    def watch(self, directory: tuple[int, int], watch: int) -> None:
        """Events of a directory have this watch's number from now on.

        Args:
            directory: its device and inode.
            watch: the number, which the kernel never uses again.
        """
        self._watches[directory] = watch

    def unwatch(self, directory: tuple[int, int], watch: int) -> None:
        """A watch ended. Its directory may have another one already, because inodes are reused."""
        if self._watches.get(directory) == watch:
            del self._watches[directory]

    def renamed(self, watch: int, name: str) -> None:
        """A file got its name by a rename."""
        self._heard[watch, name] = time.time_ns()
        if len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)

    def written(self, watch: int, name: str) -> None:
        """A file of that name was created, or was closed by a process that could write it."""
        self._heard.pop((watch, name), None)

    def forget(self) -> None:
        """All watches ended, and their numbers may be used again."""
        self._watches.clear()
        self._heard.clear()

    def lost(self) -> None:
        """Events were lost: nothing that was heard is certain."""
        self._heard.clear()

    def renamed_into_place(self, directory: Directory, name: str, info: os.stat_result) -> bool:
        """Return whether a file was renamed into place and not opened for writing since.

        Args:
            directory: where it is.
            name: its name there.
            info: its status, read before this call: events of all that came earlier are read now.
        """
        watch = self._watches.get(directory.key)
        if watch is None or (watch, name) not in self._heard:
            return False
        self._read_events()
        heard = self._heard.get((watch, name))
        # Events name the path that was used. A write through a second name shows only in the time.
        return heard is not None and info.st_nlink == 1 and info.st_mtime_ns <= heard


class WriterRenames:
    """Tells the renames of writers from those of sidecars that put files back.

    Args:
        renames: the renames that were seen.
        put_backs: the marks of the files that sidecars put back.
    """

    def __init__(self, renames: RenameLog, put_backs: PutBacks) -> None:
        self._renames, self._put_backs = renames, put_backs

    def prove(self, directory: Directory, name: str, info: os.stat_result) -> bool:
        """Return whether a file's writer renamed it into place after its last write."""
        return self._renames.renamed_into_place(directory, name, info) and info.st_ino not in self._put_backs
