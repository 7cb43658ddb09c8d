"""Directories as descriptors: every step is relative to one and follows no symbolic link.

A path that is checked and then used can be changed in between by whoever writes the spool; a descriptor
cannot. See openat(2), "Rationale for openat() and other directory file descriptor APIs".
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import TracebackType

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory. Usable as a context manager.

    Call `close` on each that lives longer than a batch. Any other is closed with the last reference to it.

    Attributes:
        fd: the descriptor; -1 after `close`.
        shown: its path, to name it to people; never used to reach it.
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
        """Open it a second time, for an owner that may live longer."""
        return Directory(os.dup(self.fd), self.shown)

    def open(self, name: str) -> Directory:
        """A directory in this one.

        Raises:
            OSError: it is missing, or is something else; ENOTDIR or ELOOP for a symbolic link.
        """
        return Directory(os.open(name, _OPEN, dir_fd=self.fd), f"{self.shown}/{name}")

    def make(self, name: str, mode: int = 0o777) -> tuple[Directory, bool]:
        """A directory in this one, made where it is missing; and whether it was.

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
            return self.open(name), False  # another was first
        return self.open(name), True

    def inode(self, name: str) -> tuple[int, int] | None:
        """Device and inode of a name here, None where there is none."""
        try:
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_dev, info.st_ino

    def links(self, name: str) -> int:
        """The number of names that a file here has.

        Raises:
            OSError: there is no such name.
        """
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_nlink

    @property
    def key(self) -> tuple[int, int]:
        """Its device and inode."""
        if self._key is None:
            info = os.fstat(self.fd)
            self._key = info.st_dev, info.st_ino
        return self._key

    @property
    def owner(self) -> int:
        """Its user."""
        return self._status()[0]

    def is_of(self, user: int) -> bool:
        """Whether only that user can put names here: it is theirs, and others may not write it."""
        return self._status() == (user, False)

    def _status(self) -> tuple[int, bool]:
        """Its user, and whether others may write it."""
        if self._owner is None:
            info = os.fstat(self.fd)
            self._owner = info.st_uid, bool(info.st_mode & 0o022)
        return self._owner

    def sync(self) -> None:
        """fsync(2): the names in it are on the disk."""
        os.fsync(self.fd)


def open_root(path: Path) -> Directory:
    """The directory at a path that the operator gave: the one place where links are followed.

    Raises:
        OSError: it is missing, or no directory.
    """
    return Directory(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), str(path))


_libc = ctypes.CDLL(None, use_errno=True)


_NO_REPLACE = 1  # RENAME_NOREPLACE of linux/fs.h


def move_name(name: str, source: Directory, target: Directory, new: str | None = None) -> None:
    """Rename a file into another directory, where its name, or the new one, must be free.

    In one step, renameat2(2): with link and unlink a mover that is killed in between leaves two names, and
    whoever takes both for files has the file twice. File systems without it (EINVAL) get the two steps.

    Raises:
        OSError: FileExistsError where the name is taken.
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

    Durable it is only after that sync: sync_file_range(2) writes no metadata. Does nothing where the call is missing.

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
    """syncfs(2): everything written to the directory's file system is on the disk.

    Raises:
        OSError: something could not be written (told since Linux 5.8).
    """
    if _libc.syncfs(directory.fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
