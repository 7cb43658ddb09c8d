"""The entries of one version on the disk: written as whole files, verified when they are read.

::

    entries/<version's digest>/<two digits>/<name>          an entry, see `sharedvol.cache.entry_file`
    entries/<version's digest>/<two digits>/<name>.lock     locked while the entry is computed, then removed
    entries/<version's digest>/<two digits>/.….sharedvol-tmp    being written
    entries/<version's digest>/tally, limits.lock           see `sharedvol.cache.eviction`

The name is the key's digest. The version is part of the path. Its directory is only created under the lock of
`sharedvol.cache.versioning`. So a process that still writes for a purged version finds no directory, and cannot read or
feed the entries of the next version.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from sharedvol.cache.entry_file import HEADER_BYTES, MAX_READ, checksum, checksum_of_file, parse_header, read_payload
from sharedvol.cache.keys import NAME
from sharedvol.cache.temporary import Temporary, remove
from sharedvol.filesystem import open_directory, open_file

_TOUCH_SECONDS: Final = 60.0
_CLOCK_SECONDS: Final = 1.0
_FIRST_READ: Final = 1 << 16
_UNUSABLE: Final = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Absent(enum.Enum):
    """Why there is no entry."""

    MISSING = "missing, or too old"
    DAMAGED = "damaged, or not an entry"


class FoundEntry(NamedTuple):
    """A file with the name of an entry, found by a scan."""

    name: str
    size: int
    used_ns: int
    regular: bool


class Entries:
    """The entries of one version.

    Args:
        directory: the cache's directory.
        version: the name of the version's directory in ``entries/``.
        max_age: seconds after which an entry expires; None for never.
        max_bytes: the largest file that is read, because a larger one is not an entry of ours.
    """

    def __init__(self, directory: str, version: str, max_age: float | None, max_bytes: int | None) -> None:
        self.top = os.path.join(directory, "entries")
        self.version = version
        self.path = os.path.join(self.top, version)
        self._max_age, self._max_bytes = max_age, max_bytes

    def lock_path(self, name: str) -> str:
        """Return the lock file of an entry that is being computed."""
        return os.path.join(self.path, name[:2], f"{name}.lock")

    def load(self, name: str) -> bytes | Absent:
        """Return the verified payload of an entry."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened
        fd, info = opened
        try:
            data = os.read(fd, _FIRST_READ)
            header = parse_header(data[:HEADER_BYTES], name, info.st_size)
            if header is None:
                return Absent.DAMAGED  # without reading it, whatever its size
            data += _read(fd, info.st_size - len(data))
            if checksum(header.line, memoryview(data)[HEADER_BYTES:]) != header.checksum:
                return Absent.DAMAGED
            if self._is_old(header.created):
                return Absent.MISSING
            _touch(fd, info)
            return data[HEADER_BYTES:]
        except OSError:
            return Absent.DAMAGED  # EIO: the disk lost it
        finally:
            os.close(fd)

    def open(self, name: str) -> BinaryIO | Absent:
        """Return the payload of an entry as a file, after verifying all of it."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened
        fd, info = opened
        try:
            header = parse_header(os.pread(fd, HEADER_BYTES, 0), name, info.st_size)
            if header is None or checksum_of_file(header.line, fd) != header.checksum:
                return Absent.DAMAGED
            if self._is_old(header.created):
                return Absent.MISSING
            _touch(fd, info)
            file = read_payload(fd, header.length)
            fd = -1
            return file
        except OSError:
            return Absent.DAMAGED
        finally:
            if fd >= 0:
                os.close(fd)

    def is_expired(self, name: str) -> bool:
        """Return whether an entry is too old, judged by its header alone, or is not an entry."""
        opened = self._open(name)
        if isinstance(opened, Absent):
            return opened is Absent.DAMAGED
        fd, info = opened
        try:
            header = parse_header(os.pread(fd, HEADER_BYTES, 0), name, info.st_size)
        except OSError:
            return False
        finally:
            os.close(fd)
        return header is None or self._is_old(header.created)

    def remove(self, name: str) -> bool:
        """Remove an entry, or whatever has its name. Return False if there was nothing.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            with self.fan(name[:2]) as fan:
                return remove(name, fan)
        except FileNotFoundError:
            return False

    def make_fan(self, digits: str) -> None:
        """Create the directory of the names that begin with two digits.

        Raises:
            OSError: it cannot be created; FileNotFoundError if the version was purged.
        """
        above = open_directory(self.top, self.version)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(digits, dir_fd=above)
        finally:
            os.close(above)

    def temporary(self, name: str) -> Temporary:
        """Create a file that can become an entry.

        Raises:
            OSError: it cannot be created; FileNotFoundError also if the version was purged.
        """
        return Temporary(open_directory(self.top, self.version, name[:2]))

    @contextlib.contextmanager
    def fan(self, digits: str) -> Iterator[int]:
        """Open the directory of the names that begin with two digits.

        Raises:
            OSError: it cannot be opened.
        """
        fd = open_directory(self.top, self.version, digits)
        try:
            yield fd
        finally:
            os.close(fd)

    def fans(self) -> list[str]:
        """Return the directories that exist, none if the version was purged.

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

    def scan(self) -> Iterator[FoundEntry]:
        """Yield every entry, including expired ones.

        Raises:
            OSError: a directory cannot be read. Its content must not count as nothing.
        """
        for digits in self.fans():
            try:
                with self.fan(digits) as fan, os.scandir(fan) as files:
                    for file in files:
                        if NAME.fullmatch(file.name) and file.name.startswith(digits):
                            with contextlib.suppress(FileNotFoundError):  # removed since
                                info = file.stat(follow_symlinks=False)
                                regular = stat.S_ISREG(info.st_mode)
                                yield FoundEntry(file.name, info.st_size, info.st_mtime_ns, regular)
            except OSError as error:
                if error.errno not in _GONE:  # purged since, or replaced by another user
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
        """Return whether an entry is too old, or of unknown age because the clock was set back since its creation."""
        if self._max_age is None:
            return False
        return not -_CLOCK_SECONDS <= time.time() - created / 1e6 < self._max_age


def _read(fd: int, size: int) -> bytes:
    """Return the next ``size`` bytes of a file, or as many as there are."""
    parts = []
    while size > 0 and (data := os.read(fd, min(size, MAX_READ))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _touch(fd: int, info: os.stat_result) -> None:
    """Record for eviction that an entry was used, at most once a minute."""
    if abs(time.time() - info.st_mtime) > _TOUCH_SECONDS:
        with contextlib.suppress(OSError):  # another user's, or a read-only mount
            os.utime(fd)
