"""Directories as descriptors. Every step is relative to one and follows no symbolic link.

A process that writes the spool can change a path between its check and its use, but not a descriptor. See openat(2),
"Rationale for openat() and other directory file descriptor APIs".
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import TracebackType

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory, which is also a context manager.

    Call `close` on each that lives longer than a batch. Any other is closed with the last reference to it.

    Attributes:
        fd: the descriptor; -1 after `close`.
        shown: its path for messages, which is never used to open anything.
    """

    __slots__ = ("_key", "_owner", "fd", "shown")

    def __init__(self, fd: int, shown: str) -> None:
        self.fd, self.shown = fd, shown
        self._owner: tuple[int, bool] | None = None
        self._key: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the descriptor. Does nothing the second time."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def duplicate(self) -> Directory:
        """Return a second object with its own descriptor, which may live longer."""
        return Directory(os.dup(self.fd), self.shown)

    def open(self, name: str) -> Directory:
        """Open a directory in this one.

        Raises:
            OSError: it is missing or is something else; ENOTDIR or ELOOP for a symbolic link.
        """
        return Directory(os.open(name, _OPEN, dir_fd=self.fd), f"{self.shown}/{name}")

    def make(self, name: str, mode: int = 0o777) -> tuple[Directory, bool]:
        """Open a directory in this one, and make it if it is missing. Also return whether it was made.

        Raises:
            OSError: as for mkdir(2) and `open`.
        """
        try:
            return self.open(name), False
        except FileNotFoundError:
            pass
        try:
            os.mkdir(name, mode, dir_fd=self.fd)
        except FileExistsError:
            return self.open(name), False  # another process made it
        return self.open(name), True

    def inode(self, name: str) -> tuple[int, int] | None:
        """Return device and inode of a name here; None if it does not exist."""
        try:
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_dev, info.st_ino

    def links(self, name: str) -> int:
        """Return the number of hard links to a file here.

        Raises:
            OSError: the name does not exist.
        """
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_nlink

    @property
    def key(self) -> tuple[int, int]:
        """Device and inode of the directory."""
        if self._key is None:
            info = os.fstat(self.fd)
            self._key = info.st_dev, info.st_ino
        return self._key

    @property
    def owner(self) -> int:
        """The user that owns the directory."""
        return self._status()[0]

    def is_of(self, user: int) -> bool:
        """Return whether only that user can create names here: it owns the directory, and others may not write it."""
        return self._status() == (user, False)

    def _status(self) -> tuple[int, bool]:
        """Return the owner, and whether others may write the directory."""
        if self._owner is None:
            info = os.fstat(self.fd)
            self._owner = info.st_uid, bool(info.st_mode & 0o022)
        return self._owner

    def sync(self) -> None:
        """Write the names in it to the disk, with fsync(2)."""
        os.fsync(self.fd)


def open_root(path: Path) -> Directory:
    """Open the directory at a path that the operator gave. Only here, symbolic links are followed.

    Raises:
        OSError: it is missing, or is not a directory.
    """
    return Directory(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), str(path))


_libc = ctypes.CDLL(None, use_errno=True)


_NO_REPLACE = 1  # RENAME_NOREPLACE of linux/fs.h


def move_name(name: str, source: Directory, target: Directory, new: str | None = None) -> None:
    """Rename a file into another directory, where its name, or the new one, must be free.

    It is one step, renameat2(2). With link and unlink, a mover that is killed in between leaves two names of the file,
    which other programs may read as two files. Only file systems without renameat2 (EINVAL) get these two steps.

    Raises:
        OSError: the file cannot be renamed; FileExistsError if the name is taken.
    """
    renameat2 = getattr(_libc, "renameat2", None)  # musl has it since 1.2.6
    if renameat2 is not None:
        if renameat2(source.fd, os.fsencode(name), target.fd, os.fsencode(new or name), _NO_REPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
    os.link(name, new or name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
    os.unlink(name, dir_fd=source.fd)


_WRITE_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER of linux/fs.h


def sync_range(fd: int, offset: int, length: int) -> None:
    """Write a part of a file to the disk, so that the sync that makes the file durable is short.

    Only that sync makes it durable, because sync_file_range(2) writes no metadata. Does nothing if the call is missing.

    Raises:
        OSError: the part cannot be written.
    """
    call = getattr(_libc, "sync_file_range", None)
    if call is None:
        return
    if call(fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_WRITE_AND_WAIT)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
            raise OSError(number, os.strerror(number))


def sync_filesystem(directory: Directory) -> None:
    """Write everything in the directory's file system to the disk, with syncfs(2).

    Raises:
        OSError: something could not be written. Linux reports that since 5.8.
    """
    if _libc.syncfs(directory.fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
