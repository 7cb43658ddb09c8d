"""Identify the file of a descriptor, even if an inode number is used again.

The number of a removed file's inode is used again, but not together with its time of birth. See statx(2), which glibc
has since 2.28 and musl since 1.2.5. Without it, or without times of birth, only the number is used.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_statx = getattr(_libc, "statx", None)

_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
_SIZE = 256  # of struct statx, which will not grow
_MASK, _BIRTH = struct.Struct("=I"), struct.Struct("=qI")
_BIRTH_OFFSET = 0x50


def birth_ns(fd: int) -> int:
    """Return when the file was created, in nanoseconds since 1970; 0 if that is not known."""
    if _statx is None:
        return 0
    buffer = ctypes.create_string_buffer(_SIZE)
    if _statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    if not _MASK.unpack_from(buffer)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _BIRTH.unpack_from(buffer, _BIRTH_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def identity(fd: int, inode: int | None = None) -> str:
    """Return an identity of the file that does not depend on its names."""
    number = os.fstat(fd).st_ino if inode is None else inode
    return f"{number:x}-{birth_ns(fd):x}"


def inode_of(identity: str) -> int:
    """Return the inode's number in an identity.

    Raises:
        ValueError: it is not an identity.
    """
    return int(identity.partition("-")[0], 16)
