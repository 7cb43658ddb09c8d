"""Which file a descriptor is open on, so that a file which got a dead one's inode is told from it.

An inode's number is used again as soon as its file is gone; number and time of birth together are not.
See statx(2): glibc has it since 2.28, musl since 1.2.5. Where it is missing, or the file system keeps no
time of birth, the number stands alone.
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
    """When the file was made, in nanoseconds since 1970; 0 where nobody knows."""
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
    """A name for the file itself, whatever it is called and wherever it is renamed to."""
    number = os.fstat(fd).st_ino if inode is None else inode
    return f"{number:x}-{birth_ns(fd):x}"


def inode_of(identity: str) -> int:
    """The inode's number in what `identity` gave.

    Raises:
        ValueError: it is none.
    """
    return int(identity.partition("-")[0], 16)
