"""Open what is below a directory that other processes may write: by descriptors, and through no symbolic link.

A path that is used twice may lead to two different files. So a directory is opened once, and everything below it is
reached from its descriptor.
"""

from __future__ import annotations

import os
import stat
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_BYTES: Final = 8192  # the library's own small files have less than 3000


def open_top(path: str | os.PathLike[str]) -> int:
    """Open a directory that the user named, for example a volume, and return its descriptor.

    The path may contain symbolic links, because the user chose it.

    Raises:
        OSError: it is missing, or is not a directory.
    """
    return os.open(path, _DIRECTORY)


def open_subdirectory(name: str, directory: int) -> int:
    """Open a directory in another one and return its descriptor.

    Raises:
        OSError: it is missing, is a symbolic link, or is not a directory.
    """
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)


def open_directory(top: str, *below: str) -> int:
    """Open a directory below ``top`` and return its descriptor.

    Neither the last part of ``top`` nor a part of ``below`` may be a symbolic link.

    Raises:
        OSError: it is missing, or is not a directory.
    """
    fd = os.open(top, _DIRECTORY | os.O_NOFOLLOW)
    for name in below:
        try:
            inner = open_subdirectory(name, fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def open_file(name: str, directory: int, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a file in a directory and return its descriptor. Never waits for the other end of a FIFO.

    Use fstat(2) to find out what the descriptor is.

    Args:
        name: the file's name.
        directory: a descriptor of the directory.
        flags: as for open(2).
        mode: of a file that this creates, less the umask.

    Raises:
        OSError: the file is missing, is a symbolic link, or may not be opened.
    """
    return os.open(name, flags | _FILE, mode, dir_fd=directory)


def read_file(name: str, directory: int) -> bytes | None:
    """Return the beginning of a small regular file; None if there is none that can be read."""
    try:
        fd = open_file(name, directory)
    except OSError:
        return None
    try:
        return os.read(fd, _MAX_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)
