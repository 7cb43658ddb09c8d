"""Contents of files: digests, copies and compression."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

from sharedvol_sidecar.fs.holes import data_bytes, data_ranges

CHUNK = 1024 * 1024
_AT_ONCE = 64 * 1024
_FICLONE = 0x40049409

SYNC_EVERY = 64 * 1024 * 1024
"""Bytes of a copy that are written between two syncs."""

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
"""The suffix of a compressed file's name, by encoding."""

_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip", ".lz4", ".br")
"""The suffixes of files that are already compressed."""


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(encoding: str) -> _Compressor:
    if encoding == "gzip":
        return zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header, without name and time
    return zstandard.ZstdCompressor(write_checksum=True).compressobj()


def digest(fd: int, size: int, proceed: Callable[[], bool] = lambda: True) -> str | None:
    """Compute the SHA-256 of the first ``size`` bytes, in hexadecimal; None if ``proceed`` returned False.

    Args:
        fd: open for reading.
        size: the end, because the file may grow meanwhile.
        proceed: called after each chunk. False ends the work.

    Raises:
        OSError: it cannot be read.
    """
    if size <= _AT_ONCE:
        return hashlib.sha256(os.pread(fd, size, 0)).hexdigest()
    found = hashlib.sha256()
    for chunk in _chunks(fd, size):
        found.update(chunk)
        if not proceed():
            return None
    return found.hexdigest()


def encoding_of(fd: int) -> str:
    """Return how a file is compressed, by its first bytes; empty if it is not."""
    start = os.pread(fd, 4, 0)
    return next((name for first, name in _FIRST_BYTES.items() if start.startswith(first)), "")


def copy(source: int, target: int, size: int, encoding: str, proceed: Callable[[], bool]) -> str | None:
    """Copy the first ``size`` bytes. Return the SHA-256 of what was written; None if ``proceed`` returned False.

    Without compression, a hole stays a hole.

    Args:
        source: open for reading.
        target: empty, open for writing.
        size: no further, though the file may grow meanwhile.
        encoding: ``gzip``, ``zstd``, or empty for the bytes as they are.
        proceed: called after each chunk.

    Raises:
        OSError: one of the two fails, or the target is full.
    """
    found = hashlib.sha256()
    target_file = _Target(target)
    if not encoding:
        done = _copy_ranges(source, target_file, size, proceed, found.update)
        return found.hexdigest() if done else None
    compressor = _compressor(encoding)

    def put(data: bytes) -> None:
        found.update(data)
        target_file.write(data)

    for chunk in _chunks(source, size):
        put(compressor.compress(chunk))
        if not proceed():
            return None
    put(compressor.flush())
    return found.hexdigest()


def copy_data(source: int, target: int, size: int, proceed: Callable[[], bool]) -> bool:
    """Copy the first ``size`` bytes of a hollow file without reading its holes. False if ``proceed`` returned False.

    Raises:
        OSError: one of the two fails, or the target is full.
    """
    return _copy_ranges(source, _Target(target), size, proceed, None)


def clone(source: int, target: int, size: int) -> bool:
    """Let an empty file share the blocks of another, up to ``size``. Return False if the file system cannot do that.

    See FICLONE, ioctl_ficlone(2).
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    os.ftruncate(target, size)
    return True


def same(plain: int, stored: int, encoding: str, proceed: Callable[[], bool] = lambda: True) -> bool:
    """Return whether ``stored`` has the content of ``plain``, compressed or not; False if ``proceed`` says so."""
    size = os.fstat(plain).st_size
    if not encoding:
        if os.fstat(stored).st_size != size:
            return False
        # Zeros in one file may be a hole in the other.
        return _agree(plain, stored, size, proceed) and (
            data_bytes(plain, size) == size or _agree(stored, plain, size, proceed)
        )
    offset = 0
    try:
        for chunk in _unpacked(stored, encoding):
            if not proceed() or (chunk and os.pread(plain, len(chunk), offset) != chunk):
                return False
            offset += len(chunk)
    except (zlib.error, EOFError, gzip.BadGzipFile, zstandard.ZstdError):
        return False
    return offset == size


class _Target:
    """Writes a copy and syncs it in parts, because one sync of a long file would block for minutes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        write_all(self.fd, data)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_EVERY:
            os.fdatasync(self.fd)
            self._unsynced = 0


def _copy_ranges(
    source: int,
    target: _Target,
    size: int,
    proceed: Callable[[], bool],
    update: Callable[[bytes], object] | None,
) -> bool:
    offset = 0
    for begin, end in data_ranges(source, size):
        if begin > offset:
            if update is not None and not _pass_zeros(begin - offset, update, proceed):
                return False
            os.lseek(target.fd, begin, os.SEEK_SET)
        for chunk in _chunks(source, end, begin):
            target.write(chunk)
            if update is not None:
                update(chunk)
            if not proceed():
                return False
        offset = end
    if offset < size:
        os.ftruncate(target.fd, size)
        return update is None or _pass_zeros(size - offset, update, proceed)
    return True


def _pass_zeros(count: int, update: Callable[[bytes], object], proceed: Callable[[], bool]) -> bool:
    """Call ``update`` with the zeros that a hole reads as."""
    zeros = bytes(min(count, CHUNK))
    while count > 0:
        update(zeros[:count])
        count -= len(zeros)
        if not proceed():
            return False
    return True


def _agree(one: int, other: int, size: int, proceed: Callable[[], bool]) -> bool:
    """Return whether ``other`` has the data of ``one`` at the same offsets."""
    for begin, end in data_ranges(one, size):
        offset = begin
        for chunk in _chunks(one, end, begin):
            if not proceed() or os.pread(other, len(chunk), offset) != chunk:
                return False
            offset += len(chunk)
        if offset != end:
            return False
    return True


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes, in several calls if a full disk takes only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unpacked(fd: int, encoding: str) -> Iterator[bytes]:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        # Read in bounded pieces, because compressed zeros unpack to a thousand times their size.
        unpack: Any = gzip.GzipFile(fileobj=file) if encoding == "gzip" else _zstd_reader(file)
        with unpack as reader:
            while chunk := reader.read(CHUNK):
                yield chunk


def _zstd_reader(file: Any) -> Any:
    return zstandard.ZstdDecompressor().stream_reader(file)


def _chunks(fd: int, end: int, offset: int = 0) -> Iterator[bytes]:
    while offset < end and (chunk := os.pread(fd, min(CHUNK, end - offset), offset)):
        yield chunk
        offset += len(chunk)
