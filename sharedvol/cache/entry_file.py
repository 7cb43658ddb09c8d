r"""The format of an entry's file: one line, and the payload.

::

    sharedvol-cache 1 <name> <length of the payload> <created> <checksum>\n

``created`` is in microseconds since 1970. The numbers have 20 digits. The checksum is BLAKE2b of 32 bytes, over the
line up to it and the payload. So an entry needs no sync: what a power cut leaves of it fails the check.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from typing import BinaryIO, Final, NamedTuple, cast

from sharedvol.cache.temporary import Temporary, Window

_MAGIC: Final = "sharedvol-cache 1"
_DIGEST_BYTES: Final = 32
_LINE: Final = "{magic} {name} {length:020d} {created:020d} "
HEADER_BYTES: Final = len(_MAGIC) + 1 + 65 + 21 + 21 + 2 * _DIGEST_BYTES + 1
MAX_READ: Final = 1 << 30  # Linux reads or writes at most 0x7ffff000 bytes at once, see read(2)
_CHUNK: Final = 1 << 20


class Header(NamedTuple):
    """A header, in its parts.

    Attributes:
        line: the line up to the checksum.
        length: the length of the payload in bytes.
        created: the time of creation, in microseconds since 1970.
        checksum: the checksum, and the end of the line.
    """

    line: bytes
    length: int
    created: int
    checksum: bytes


def write_payload(temporary: Temporary, name: str, payload: bytes) -> int:
    """Write an entry of ``name`` into a temporary. Return its size in bytes.

    Raises:
        OSError: the disk is full.
    """
    line = _line(name, len(payload))
    data = line + checksum(line, payload) + payload
    view = memoryview(data)
    while view:
        view = view[os.write(temporary.fd, view[:MAX_READ]) :]
    return len(data)


def payload_writer(temporary: Temporary) -> BinaryIO:
    """Return a file to write a payload to, which `seal` then makes an entry.

    Raises:
        OSError: the disk is full.
    """
    os.pwrite(temporary.fd, bytes(HEADER_BYTES), 0)  # now, because here a full disk can be reported
    return cast(BinaryIO, io.BufferedWriter(Window(os.dup(temporary.fd), HEADER_BYTES, None), _CHUNK))


def seal(temporary: Temporary, name: str) -> int:
    """Complete a temporary with a payload to an entry of ``name``. Return its size in bytes.

    Raises:
        OSError: the disk is full, or damaged.
    """
    size = os.fstat(temporary.fd).st_size
    line = _line(name, size - HEADER_BYTES)
    os.pwrite(temporary.fd, line + checksum_of_file(line, temporary.fd), 0)
    return size


def payload_reader(temporary: Temporary) -> BinaryIO:
    """Return the payload that was written to a temporary, whether or not the temporary ever gets its name."""
    return read_payload(os.dup(temporary.fd), os.fstat(temporary.fd).st_size - HEADER_BYTES)


def read_payload(fd: int, length: int) -> BinaryIO:
    """Return the payload of an entry's file as a file, which closes the descriptor."""
    return cast(BinaryIO, io.BufferedReader(Window(fd, HEADER_BYTES, length), 1 << 16))


def _line(name: str, length: int) -> bytes:
    created = time.time_ns() // 1000
    return _LINE.format(magic=_MAGIC, name=name, length=length, created=created).encode()


def parse_header(header: bytes, name: str, size: int) -> Header | None:
    """Return the header of a file of that size, if it is valid for an entry of that name."""
    line, rest = header[: -2 * _DIGEST_BYTES - 1], header[-2 * _DIGEST_BYTES - 1 :]
    try:
        length, created = int(line[-42:-22]), int(line[-21:-1])
        whole = line == _LINE.format(magic=_MAGIC, name=name, length=length, created=created).encode()
    except ValueError:
        return None
    return Header(line, length, created, rest) if whole and size == HEADER_BYTES + length else None


def checksum(line: bytes, payload: bytes | memoryview) -> bytes:
    """Return the end of a header: the checksum, and the end of the line."""
    digest = hashlib.blake2b(line, digest_size=_DIGEST_BYTES)
    digest.update(payload)
    return b"%s\n" % digest.hexdigest().encode()


def checksum_of_file(line: bytes, fd: int) -> bytes:
    """Return what `checksum` does for the payload in an entry's file."""
    digest = hashlib.blake2b(line, digest_size=_DIGEST_BYTES)
    position = HEADER_BYTES
    while chunk := os.pread(fd, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
    return b"%s\n" % digest.hexdigest().encode()
