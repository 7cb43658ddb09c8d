"""Holes in files: ranges that take no space on the disk and read as zeros.

One call can make a file as long as a disk without any data. Work on such a file must depend on its data and not on its
length. See lseek(2), SEEK_DATA and SEEK_HOLE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

SPARE = 16 * 1024 * 1024
"""A file of at most this length, in bytes, never counts as hollow. Reading so many zeros takes little time."""

MOST = 8
"""A file that is this many times longer than its data counts as hollow."""


def next_data(fd: int, offset: int, size: int) -> int:
    """Find where the hole at ``offset`` ends; return ``offset`` itself if there is no hole."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left, or the file was truncated
            return max(offset, min(size, os.fstat(fd).st_size))
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return offset
        raise


def next_hole(fd: int, offset: int, size: int) -> int:
    """Find where the data at ``offset`` ends, at most at ``size``."""
    try:
        return min(max(os.lseek(fd, offset, os.SEEK_HOLE), offset + 1), size)
    except OSError:
        return size


def data_ranges(fd: int, size: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the begin and the end of each range of data from ``offset`` to ``size``.

    A file system without holes reports the whole file as one range.

    Raises:
        OSError: the ranges cannot be read.
    """
    while (begin := next_data(fd, offset, size)) < size:
        end = next_hole(fd, begin, size)
        yield begin, end
        offset = end


def data_bytes(fd: int, size: int, offset: int = 0) -> int:
    """Count the bytes from ``offset`` to ``size`` that are not in a hole: what a copy takes on the disk."""
    return sum(end - begin for begin, end in data_ranges(fd, size, offset))


def is_hollow(fd: int, info: os.stat_result) -> bool:
    """Return whether a long file is almost only holes, so that reading it takes far longer than writing it did.

    A file system that compresses has few blocks for ordinary data, so the number of blocks alone does not decide.
    """
    if not _exceeds(info.st_size, info.st_blocks * 512):
        return False
    data = 0
    for begin, end in data_ranges(fd, info.st_size):
        data += end - begin
        if not _exceeds(info.st_size, data):
            return False
    return True


def _exceeds(size: int, data: int) -> bool:
    return size > SPARE + MOST * data
