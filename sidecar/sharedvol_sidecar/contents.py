"""Bytes: digests, and copies that may be compressed on the way."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

CHUNK = 1024 * 1024
_AT_ONCE = 64 * 1024

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
"""What a compressed file's name ends with, by its encoding."""

PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip", ".lz4", ".br")
"""What is compressed already, to go by its name."""


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(encoding: str) -> _Compressor:
    if encoding == "gzip":
        return zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header, without name and time
    if encoding == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return _Plain()


def digest(fd: int, size: int, going_on: Callable[[], bool] = lambda: True) -> str | None:
    """The SHA-256 of the first ``size`` bytes, in hexadecimal; None once ``going_on`` says no.

    Raises:
        OSError: it cannot be read.
    """
    if size <= _AT_ONCE:
        return hashlib.sha256(os.pread(fd, size, 0)).hexdigest()
    found = hashlib.sha256()
    for chunk in _chunks(fd, size):
        found.update(chunk)
        if not going_on():
            return None
    return found.hexdigest()


def copy(source: int, target: int, size: int, encoding: str, going_on: Callable[[], bool]) -> str | None:
    """Copy the first ``size`` bytes. Returns the SHA-256 of what was written, None once ``going_on`` says no.

    Args:
        source: open for reading.
        target: empty, open for writing.
        size: no further, though the file may grow meanwhile.
        encoding: ``gzip``, ``zstd``, or empty for the bytes as they are.
        going_on: asked after each chunk.

    Raises:
        OSError: one of the two fails, or the target is full.
    """
    found = hashlib.sha256()
    compressor = _compressor(encoding)

    def put(data: bytes) -> None:
        found.update(data)
        write_all(target, data)

    for chunk in _chunks(source, size):
        put(compressor.compress(chunk))
        if not going_on():
            return None
    put(compressor.flush())
    return found.hexdigest()


def same(plain: int, stored: int, encoding: str) -> bool:
    """Whether ``stored`` holds what ``plain`` does, compressed or as it is."""
    offset = 0
    try:
        for chunk in _decoded(stored, encoding):
            if chunk and os.pread(plain, len(chunk), offset) != chunk:
                return False
            offset += len(chunk)
    except (zlib.error, EOFError, gzip.BadGzipFile, zstandard.ZstdError):
        return False
    return offset == os.fstat(plain).st_size


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written: a full disk may take a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _decoded(fd: int, encoding: str) -> Iterator[bytes]:
    if not encoding:
        yield from _chunks(fd, os.fstat(fd).st_size)
        return
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        # Read in bounded pieces: a chunk of zeros unpacks to a thousand times its size.
        unpack: Any = gzip.GzipFile(fileobj=file) if encoding == "gzip" else _zstd_reader(file)
        with unpack as reader:
            while chunk := reader.read(CHUNK):
                yield chunk


def _zstd_reader(file: Any) -> Any:
    return zstandard.ZstdDecompressor().stream_reader(file)


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size and (chunk := os.pread(fd, min(CHUNK, size - offset), offset)):
        yield chunk
        offset += len(chunk)
