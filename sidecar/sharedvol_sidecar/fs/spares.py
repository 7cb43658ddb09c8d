"""Spare directories and lock files, which are made while there is room and used on a full disk.

A claim needs directories, and a new container needs a lock. If a full spool has room for neither, no file can leave it.
Renaming an existing file or directory needs no new block or inode if its new directory has room for a name.

The spares have hidden names in directories of ours. An older release of the sidecar removes them with other empty
directories, and the next batch makes them again.
"""

from __future__ import annotations

import contextlib
import os

from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.fs.directory import Directory, move_name

PREFIX = ".spare-"

FEWEST = 8
"""The least number of spares: for a claim and the directories of its path."""


def is_spare(name: str) -> bool:
    """Return whether a name is a spare's."""
    return name.startswith(PREFIX)


class SpareDirectories:
    """The spare directories of one mover.

    Args:
        home: the directory that they are in.
    """

    def __init__(self, home: Directory) -> None:
        self._home = home
        self._wanted = FEWEST
        self._names = {name for name in os.listdir(home.fd) if is_spare(name)}
        self.fill()

    def fill(self) -> None:
        """Make missing spares while there is room."""
        while len(self._names) < self._wanted:
            name = self._free_name()
            try:
                os.mkdir(name, 0o700, dir_fd=self._home.fd)
            except OSError:
                return
            self._names.add(name)

    def need(self, count: int) -> None:
        """Keep at least this many from now on, because a path was that deep."""
        self._wanted = max(self._wanted, count)

    def make(self, parent: Directory, name: str) -> Directory:
        """Make a directory, or rename a spare if there is no room.

        Raises:
            OSError: as for mkdir(2); ENOSPC or EDQUOT if there is no spare either.
        """
        try:
            return parent.make(name, 0o700)[0]
        except OSError as error:
            if error.errno not in FULL or not self._names:
                raise
        spare = self._names.pop()
        try:
            os.rename(spare, name, src_dir_fd=self._home.fd, dst_dir_fd=parent.fd)
        except FileNotFoundError:
            return self.make(parent, name)  # something else removed it
        except OSError:
            self._names.add(spare)
            raise
        return parent.open(name)

    def remove(self, parent: Directory, name: str) -> None:
        """Remove a directory or keep it as a spare. A directory that is not empty stays.

        Raises:
            OSError: it is not empty, or cannot be removed.
        """
        if len(self._names) < self._wanted:
            with parent.open(name) as directory, os.scandir(directory.fd) as entries:
                empty = next(entries, None) is None
            if empty:
                spare = self._free_name()
                os.rename(name, spare, src_dir_fd=parent.fd, dst_dir_fd=self._home.fd)
                self._names.add(spare)
                return
        os.rmdir(name, dir_fd=parent.fd)

    def _free_name(self) -> str:
        names = (f"{PREFIX}{number}" for number in range(len(self._names) + 1))
        return next(name for name in names if name not in self._names)


class SpareFiles:
    """Spare lock files in a directory that several sidecars use.

    Args:
        home: the directory that they, and the lock files, are in.
    """

    def __init__(self, home: Directory) -> None:
        self._home = home

    def fill(self) -> None:
        """Make missing spares while there is room."""
        for number in range(FEWEST):
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(f"{PREFIX}{number}", flags, 0o600, dir_fd=self._home.fd))

    def use_as(self, name: str) -> bool:
        """Rename a spare to a name. Return True if the name exists then, and False if there is no spare."""
        for spare in filter(is_spare, os.listdir(self._home.fd)):
            try:
                move_name(spare, self._home, self._home, name)
            except FileNotFoundError:
                continue  # another sidecar took it
            except FileExistsError:
                return True
            except OSError:
                return False
            return True
        return False
