r"""The fencing token of a lock: a number that only ever grows, in a file beside the lock file.

Whoever was stopped for a minute, or lost its lock, may write late. If each write carries the token of the hold it is
made under, whoever is written to can refuse one that is smaller than the greatest it has seen.

The file ``<lock>.token`` is one line of 95 bytes, ``sharedvol-token 1 %019d %019d %-36s\n``: the token given last, the
reservation, and the boot of the kernel under which both are true. Only the exclusive holder of the lock reads
and writes it, in place, by one write: within a page, so that SIGKILL cannot tear it. See write(2), fdatasync(2).

SIGKILL takes back nothing that was written, a power cut takes back what was not synced. So no token is given that a
reservation on the disk does not cover, and after another boot the next token is above the reservation. A new
reservation is written and synced with no boot (``-``) first: were its writer killed before the sync, the next holder
would take it for one that is on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from typing import Final

from sharedvol.errors import AlreadyPublishedError, LockFileError, PublishError, describe, remedy
from sharedvol.host import here
from sharedvol.locks.file.pinned import PinnedFile
from sharedvol.publishing import publish

SUFFIX: Final = ".token"
SIZE: Final = 95
RESERVED: Final = 10_000
"""How many tokens are covered by one sync."""
LARGEST: Final = (1 << 53) - 1
"""The largest token: up to there a double, the only number of R and JavaScript, is exact."""

_NO_BOOT: Final = "-"
_LINE: Final = re.compile(rb"sharedvol-token 1 (\d{19}) (\d{19}) ([!-~]{1,36}) *\n")


class TokenFile:
    """The token file of a lock, as its holder uses it.

    Args:
        lock: the lock file.
        mode: permission bits, if it is created here.
    """

    def __init__(self, lock: str, mode: int) -> None:
        self._path, self._mode = lock + SUFFIX, mode
        self._kept = PinnedFile(self._path, self._open)
        self._boot = boot_id()
        # What stands in the file as far as we know, and its token: one attribute, so that no interrupt parts them.
        self._known: tuple[bytes, int] = (b"", 0)
        self._reserved, self._tail = 0, b""

    def next(self, *, calm: bool) -> int:
        """Give the next token. The lock must be held, and stay held while the token is used.

        Args:
            calm: no name in the directory has changed since the last call.

        Raises:
            LockFileError: the file cannot be read or written, or is damaged.
        """
        try:
            if not (self.is_unchanged() if calm else self.is_as_left()):
                self._read()
            token = self._known[1] + 1
            if token > self._reserved:
                self._reserve(token)
            else:
                self._write(token, self._tail)
        except LockFileError:
            raise
        except OSError as error:
            raise _cannot(self._path, error) from error
        return token

    def is_unchanged(self) -> bool:
        """Whether the file, as it was opened, has what we wrote last."""
        try:
            # Not nothing either: the descriptor's number may be that of somebody's empty file by now.
            return self._kept.fd is not None and os.pread(self._kept.fd, SIZE + 1, 0) == self._known[0] != b""
        except OSError:
            return False

    def is_as_left(self) -> bool:
        """Whether what we wrote last stands in the file that the path names. Any thread may ask, and opens nothing."""
        return self.is_unchanged() and self._kept.is_named()

    def look(self) -> int | None:
        """The token that stands in the file which the path names now; None where there is none.

        Any thread may ask, beside one that uses this object.

        Raises:
            LockFileError: it cannot be read, or is damaged.
        """
        try:
            fd = self._open()
        except FileNotFoundError:
            return None
        except LockFileError:
            raise
        except OSError as error:
            raise _cannot(self._path, error) from error
        try:
            return self._parse(os.pread(fd, SIZE + 1, 0))[0]
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close it."""
        self._kept.close()

    def _read(self) -> None:
        """Learn what stands in the file, made where it is missing."""
        highest = self._known[1]
        self._known = (b"", highest)
        try:
            fd = self._kept.look()
        except FileNotFoundError:
            self._create(max(highest, time.time_ns() // 1000 - 1))
            fd = self._kept.look()
        data = os.pread(fd, SIZE + 1, 0)
        token, reserved, boot = self._parse(data)
        token = max(token, highest)  # it was put back from somewhere
        if boot == self._boot and boot != _NO_BOOT:
            self._reserved, self._tail = reserved, data[37:]
        else:
            token = self._reserved = max(token, reserved)
            data = b""
            _sync_directory(self._path)  # its maker may have been killed, or the power cut, before that
        self._known = (data, token)

    def _write(self, token: int, tail: bytes) -> None:
        line = b"sharedvol-token 1 %019d%s" % (token, tail)
        fd = self._kept.fd
        if fd is None or os.pwrite(fd, line, 0) != SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._known = (line, token)

    def _reserve(self, token: int) -> None:
        reserved = token + RESERVED
        self._write(token, _tail(reserved, _NO_BOOT))
        assert self._kept.fd is not None
        os.fdatasync(self._kept.fd)
        self._reserved, self._tail = reserved, _tail(reserved, self._boot)
        if self._boot != _NO_BOOT:
            self._write(token, self._tail)

    def _create(self, last: int) -> None:
        line = b"sharedvol-token 1 %019d%s" % (last, _tail(last, _NO_BOOT))
        try:
            with publish(self._path, "wb", permissions=self._mode) as file:
                file.write(line)
        except AlreadyPublishedError:
            pass  # somebody put it back

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise LockFileError(
                errno.EINVAL,
                f"fencing file {self._path!r} is not a regular file: remove it while nobody holds the lock",
                self._path,
            )
        return fd

    def _parse(self, data: bytes) -> tuple[int, int, str]:
        found = _LINE.fullmatch(data) if len(data) == SIZE else None
        token, reserved = (int(found[1]), int(found[2])) if found else (0, 0)
        if found is None or max(token, reserved) > LARGEST - 2 * RESERVED:
            raise LockFileError(
                errno.EINVAL,
                f"fencing file {self._path!r} is damaged: to guess its token could give one twice; remove it while "
                "nobody holds the lock, and the next token will be the time in microseconds since 1970",
                self._path,
            )
        return token, reserved, found[3].decode()


def boot_id() -> str:
    """The boot of the running kernel; ``-`` where that is not known."""
    found = here()[0] or ""
    return found if re.fullmatch("[!-~]{2,36}", found, re.ASCII) else _NO_BOOT


def _tail(reserved: int, boot: str) -> bytes:
    return b" %019d %-36s\n" % (reserved, boot.encode())


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _cannot(path: str, error: OSError) -> LockFileError:
    permit = "give user {user} read and write access to the file and its directory"
    hint = remedy(
        error,
        EROFS="mount the volume read-write, or keep the lock on another",
        EACCES=permit,
        EPERM=permit,
        EISDIR="it is a directory: remove it, or name another lock",
    )
    if isinstance(error, PublishError):
        return LockFileError(error.errno or errno.EIO, f"cannot begin with fencing tokens: {error}", path)
    return LockFileError(
        error.errno or errno.EIO, f"cannot take a token from fencing file {path!r}: {describe(error)}; {hint}", path
    )
