"""The entries of one version on the disk: written whole, verified when they are read.

::

    entries/<version's digest>/<two digits>/<name>          an entry
    entries/<version's digest>/<two digits>/<name>.lock     held while it is computed, then gone
    entries/<version's digest>/<two digits>/.….sharedvol-tmp    being written
    entries/<version's digest>/tally, limits.lock           see `sharedvol.cache.eviction`

The name is the key's digest. An entry is one line and the payload::

    sharedvol-cache 1 <name> <length of the payload> <created> <checksum>\\n

``created`` is in microseconds since 1970; the numbers have 20 digits. The checksum, BLAKE2b of 32 bytes, is over the
line up to it and the payload. So nothing need be synced: what a power cut left of an entry is not taken for one.

The version is part of the path, and its directory is made only under the lock of `sharedvol.cache.versioning`: whoever
still writes for a version that was purged finds no directory, and neither reads nor feeds those of the next.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple, cast

from sharedvol.cache.keys import NAME
from sharedvol.cache.temporary import Temporary, Window, remove
from sharedvol.filesystem import open_directory, open_file

_MAGIC: Final = "sharedvol-cache 1"
_DIGEST_BYTES: Final = 32
_LINE: Final = "{magic} {name} {length:020d} {created:020d} "
HEADER_BYTES: Final = len(_MAGIC) + 1 + 65 + 21 + 21 + 2 * _DIGEST_BYTES + 1
_TOUCH_SECONDS: Final = 60.0
_CLOCK_SECONDS: Final = 1.0
_CHUNK: Final = 1 << 20
_FIRST_READ: Final = 1 << 16
_MAX_READ: Final = 1 << 30  # Linux reads at most 0x7ffff000 bytes at once, see read(2)
_UNUSABLE: Final = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Absent(enum.Enum):
    """Why there is no entry."""

    MISSING = "missing, or too old"
    DAMAGED = "damaged, or no entry at all"


class Found(NamedTuple):
    """A file that looks like an entry, in a scan."""

    name: str
    size: int
    used_ns: int
    regular: bool


class _Header(NamedTuple):
    line: bytes
    length: int
    created: int
    checksum: bytes


class Entries:
    """The entries of one version.

    Args:
        directory: the cache's directory.
        version: the name of the version's directory in ``entries/``.
        max_age: seconds after which an entry is no more; None for never.
        max_bytes: nothing larger is read: such a file is not an entry of ours.
    """

    def __init__(self, directory: str, version: str, max_age: float | None, max_bytes: int | None) -> None:
        self.top = os.path.join(directory, "entries")
        self.version = version
        self.path = os.path.join(self.top, version)
        self._max_age, self._max_bytes = max_age, max_bytes

    def lock_path(self, name: str) -> str:
        """The lock file of an entry that is computed."""
        return os.path.join(self.path, name[:2], f"{name}.lock")

    def load(self, name: str) -> bytes | Absent:
        """The payload of an entry, verified."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened
        fd, info = opened
        try:
            data = os.read(fd, _FIRST_READ)
            header = _parse(data[:HEADER_BYTES], name, info.st_size)
            if header is None:
                return Absent.DAMAGED  # and, whatever its size, not read
            data += _read(fd, info.st_size - len(data))
            if _checksum(header.line, memoryview(data)[HEADER_BYTES:]) != header.checksum:
                return Absent.DAMAGED
            if self._is_old(header.created):
                return Absent.MISSING
            _touch(fd, info)
            return data[HEADER_BYTES:]
        except OSError:
            return Absent.DAMAGED  # EIO: the disk has lost it
        finally:
            os.close(fd)

    def open(self, name: str) -> BinaryIO | Absent:
        """The payload of an entry as a file, verified from its beginning to its end."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened
        fd, info = opened
        try:
            header = _parse(os.pread(fd, HEADER_BYTES, 0), name, info.st_size)
            if header is None or _checksum_of_file(header.line, fd) != header.checksum:
                return Absent.DAMAGED
            if self._is_old(header.created):
                return Absent.MISSING
            _touch(fd, info)
            file = _reader(fd, header.length)
            fd = -1
            return file
        except OSError:
            return Absent.DAMAGED
        finally:
            if fd >= 0:
                os.close(fd)

    def is_expired(self, name: str) -> bool:
        """Whether an entry is too old, by its header alone; or is no entry."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened is Absent.DAMAGED
        fd, info = opened
        try:
            header = _parse(os.pread(fd, HEADER_BYTES, 0), name, info.st_size)
        except OSError:
            return False
        finally:
            os.close(fd)
        return header is None or self._is_old(header.created)

    def remove(self, name: str) -> bool:
        """Remove an entry, or whatever is in its place. False where there was nothing.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            with self.fan(name[:2]) as fan:
                return remove(name, fan)
        except FileNotFoundError:
            return False

    def make_fan(self, digits: str) -> None:
        """Make the directory of the names that begin with two digits.

        Raises:
            OSError: it cannot be made; FileNotFoundError if the version was purged.
        """
        above = open_directory(self.top, self.version)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(digits, dir_fd=above)
        finally:
            os.close(above)

    def temporary(self, name: str) -> Temporary:
        """A file that can become an entry.

        Raises:
            OSError: it cannot be made; FileNotFoundError also if the version was purged.
        """
        return Temporary(open_directory(self.top, self.version, name[:2]))

    @contextlib.contextmanager
    def fan(self, digits: str) -> Iterator[int]:
        """A descriptor of the directory of the names that begin with two digits.

        Raises:
            OSError: it cannot be opened.
        """
        fd = open_directory(self.top, self.version, digits)
        try:
            yield fd
        finally:
            os.close(fd)

    def fans(self) -> list[str]:
        """The directories that exist. Empty if the version was purged.

        Raises:
            OSError: they cannot be read.
        """
        try:
            fd = open_directory(self.top, self.version)
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise
        try:
            with os.scandir(fd) as found:
                return sorted(one.name for one in found if len(one.name) == 2 and one.is_dir(follow_symlinks=False))
        finally:
            os.close(fd)

    def scan(self) -> Iterator[Found]:
        """Every entry, expired ones included.

        Raises:
            OSError: a directory cannot be read: what is in it must not be taken for nothing.
        """
        for digits in self.fans():
            try:
                with self.fan(digits) as fan, os.scandir(fan) as files:
                    for file in files:
                        if NAME.fullmatch(file.name) and file.name.startswith(digits):
                            with contextlib.suppress(FileNotFoundError):  # removed since
                                info = file.stat(follow_symlinks=False)
                                regular = stat.S_ISREG(info.st_mode)
                                yield Found(file.name, info.st_size, info.st_mtime_ns, regular)
            except OSError as error:
                if error.errno not in _GONE:  # purged since, or replaced by no directory of ours
                    raise

    def _open(self, name: str) -> tuple[int, os.stat_result] | Absent:
        try:
            fan = open_directory(self.top, self.version, name[:2])
        except OSError:
            return Absent.MISSING
        try:
            fd = open_file(name, fan)
        except OSError as error:
            return Absent.DAMAGED if error.errno in _UNUSABLE else Absent.MISSING
        finally:
            os.close(fan)
        info = os.fstat(fd)
        too_large = self._max_bytes is not None and info.st_size > self._max_bytes
        if not stat.S_ISREG(info.st_mode) or info.st_size < HEADER_BYTES or too_large:
            os.close(fd)
            return Absent.DAMAGED
        return fd, info

    def _is_old(self, created: int) -> bool:
        """A creation in the future is that of a clock that was set back since: nobody knows how old it is."""
        if self._max_age is None:
            return False
        return not -_CLOCK_SECONDS <= time.time() - created / 1e6 < self._max_age


def write_payload(temporary: Temporary, name: str, payload: bytes) -> int:
    """Make a temporary the entry of ``name``. Returns its size in bytes.

    Raises:
        OSError: the disk is full.
    """
    line = _line(name, len(payload))
    data = line + _checksum(line, payload) + payload
    view = memoryview(data)
    while view:
        view = view[os.write(temporary.fd, view[:_MAX_READ]) :]
    return len(data)


def payload_writer(temporary: Temporary) -> BinaryIO:
    """A file to write a payload to, which `seal` then makes an entry.

    Raises:
        OSError: the disk is full.
    """
    os.pwrite(temporary.fd, bytes(HEADER_BYTES), 0)  # now, while a full disk can be told
    return cast(BinaryIO, io.BufferedWriter(Window(os.dup(temporary.fd), HEADER_BYTES, None), _CHUNK))


def seal(temporary: Temporary, name: str) -> int:
    """Make a temporary with a payload the entry of ``name``. Returns its size in bytes.

    Raises:
        OSError: the disk is full, or damaged.
    """
    size = os.fstat(temporary.fd).st_size
    line = _line(name, size - HEADER_BYTES)
    os.pwrite(temporary.fd, line + _checksum_of_file(line, temporary.fd), 0)
    return size


def payload_reader(temporary: Temporary) -> BinaryIO:
    """The payload that was written to a temporary, whether or not it ever gets its name."""
    return _reader(os.dup(temporary.fd), os.fstat(temporary.fd).st_size - HEADER_BYTES)


def _reader(fd: int, length: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(Window(fd, HEADER_BYTES, length), 1 << 16))


def _line(name: str, length: int) -> bytes:
    created = time.time_ns() // 1000
    return _LINE.format(magic=_MAGIC, name=name, length=length, created=created).encode()


def _parse(header: bytes, name: str, size: int) -> _Header | None:
    """The header of a file of that size, if it is one of that name's entry."""
    line, rest = header[: -2 * _DIGEST_BYTES - 1], header[-2 * _DIGEST_BYTES - 1 :]
    try:
        length, created = int(line[-42:-22]), int(line[-21:-1])
        whole = line == _LINE.format(magic=_MAGIC, name=name, length=length, created=created).encode()
    except ValueError:
        return None
    return _Header(line, length, created, rest) if whole and size == HEADER_BYTES + length else None


def _checksum(line: bytes, payload: bytes | memoryview) -> bytes:
    """The end of a header: the checksum, and the end of the line."""
    digest = hashlib.blake2b(line, digest_size=_DIGEST_BYTES)
    digest.update(payload)
    return b"%s\n" % digest.hexdigest().encode()


def _checksum_of_file(line: bytes, fd: int) -> bytes:
    digest = hashlib.blake2b(line, digest_size=_DIGEST_BYTES)
    position = HEADER_BYTES
    while chunk := os.pread(fd, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
    return b"%s\n" % digest.hexdigest().encode()


def _read(fd: int, size: int) -> bytes:
    """The next bytes of a file, as many as there are."""
    parts = []
    while size > 0 and (data := os.read(fd, min(size, _MAX_READ))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _touch(fd: int, info: os.stat_result) -> None:
    """Note that an entry was used, once a minute at most: that is what eviction goes by."""
    if abs(time.time() - info.st_mtime) > _TOUCH_SECONDS:
        with contextlib.suppress(OSError):  # another user's, or a read-only mount
            os.utime(fd)
