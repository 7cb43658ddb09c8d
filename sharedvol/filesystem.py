"""Open what is below a directory that other processes may write: by descriptors, and through no symbolic link."""

from __future__ import annotations

import os
import stat
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_BYTES: Final = 8192  # the library's own small files have less than 3000


def open_directory(top: str, *below: str) -> int:
    """Open a directory below ``top`` and return its descriptor.

    Neither the last part of ``top`` nor a part of ``below`` may be a symbolic link.

    Raises:
        OSError: it is missing, or is not a directory.
    """
    fd = os.open(top, _DIRECTORY)
    for name in below:
        try:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def open_file(name: str, directory: int) -> int:
    """Open a file for reading and return its descriptor. Never waits for the other end of a FIFO.

    Use fstat(2) to find out what the descriptor is.

    Raises:
        OSError: the file is missing, is a symbolic link, or may not be read.
    """
    return os.open(name, _FILE, dir_fd=directory)


def read_file(name: str, directory: int) -> bytes | None:
    """Return the beginning of a small regular file; None where there is not one that can be read."""
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
