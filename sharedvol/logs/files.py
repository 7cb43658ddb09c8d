"""The files of a `sharedvol.logs.ReplicaFileHandler`: how a process gets one for itself.

Each file has one writer at a time: who writes it holds flock(2) on it, taken without waiting. So each process
finds a file without asking the others: the first in this order that nobody holds and that has room. A process
that was killed frees its own at that moment, and the next to start goes on in it.

Whoever may write the directory can put things there, so what is found is checked: no symbolic link is followed,
and a file that is not regular, not this user's or has another name as well is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from datetime import date as Date

from sharedvol.logs.names import MAX_NUMBER, LogNames
from sharedvol.logs.owner import OwnDirectories, future_owner
from sharedvol.network import NetworkPolicy
from sharedvol.paths import PathLike

_PLACE = "{container}"
_TIMES = 10  # a sidecar may remove the empty directory of a replica that looks dead while it is made
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# What opening an existing file may be answered with that says something of this name only. EAGAIN: the
# sidecar has a lease on it, as it is just being moved (fcntl(2)).
_OF_THE_NAME = frozenset(
    {
        errno.EAGAIN,
        errno.ENOENT,
        errno.ELOOP,
        errno.EISDIR,
        errno.ENXIO,
        errno.ENODEV,
        errno.EACCES,
        errno.EPERM,
        errno.ETXTBSY,
    }
)


class LogDirectory:
    """Where a replica's logs are.

    From ``{container}`` on it is made where it is missing, and no symbolic link in that part is followed. What
    is before that, or all but the last part where there is no ``{container}``, must exist: it is the mounted
    volume, and a log beside an unmounted one would be lost with the container.

    Args:
        template: the directory.
        container: stands in the place of ``{container}``.
    """

    def __init__(self, template: PathLike, container: str) -> None:
        parts = os.path.abspath(os.fspath(template)).split("/")
        own = next((i for i, part in enumerate(parts) if _PLACE in part), len(parts) - 1)
        self._base = "/".join(parts[:own]) or "/"
        self._below = [part.replace(_PLACE, container) for part in parts[own:] if part]
        self._owned = OwnDirectories(own=any(_PLACE in part for part in parts))
        self.path = os.path.join(self._base, *self._below)

    def exists(self) -> bool:
        """Whether the part of it is there that is never made."""
        return os.path.isdir(self._base)

    def check(self, network: NetworkPolicy) -> None:
        """Check the file system that it is on, as far as it exists.

        Raises:
            NetworkFileSystemError: ``network`` refuses it.
        """
        for path in (self.path, self._base):  # the volume may be mounted at either
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # not there yet
            try:
                network.check(fd, "log directory", self.path)
            finally:
                os.close(fd)
            return

    @contextlib.contextmanager
    def opened(self, durable: bool) -> Iterator[int]:
        """A descriptor of it.

        Args:
            durable: sync the directories in which others are made.

        Raises:
            OSError: it cannot be opened or made.
        """
        fd = self._descend(os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), durable)
        try:
            yield fd
        finally:
            os.close(fd)

    def _descend(self, fd: int, durable: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        above = os.fstat(fd)
        for part in self._below:
            made = False
            try:
                try:
                    inside = os.open(part, flags, dir_fd=fd)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                        made = True
                    if durable:
                        _sync(fd)
                    inside = os.open(part, flags, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inside
            try:
                above = self._keep(fd, above, made)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _keep(self, fd: int, above: os.stat_result, made: bool) -> os.stat_result:
        """See to the owner of one of the directories. Return what it was before."""
        info = os.fstat(fd)
        if made:
            self._owned.made(fd)
        self._owned.hand_over(fd, above)
        return info


class LogFile:
    """One log, open, and this process's alone.

    Attributes:
        path: where it was opened.
        number: which of the day's it is.
        fd: open for appending.
        torn: whether its last line has no end: who had it before was killed in a write.
    """

    def __init__(self, path: str, number: int, fd: int) -> None:
        self.path, self.number, self.fd = path, number, fd
        info = os.fstat(fd)
        self.dev, self.ino = info.st_dev, info.st_ino
        self.torn = info.st_size > 0 and os.pread(fd, 1, info.st_size - 1) != b"\n"
        # On a file system whose inodes change from one look to the next this can never be told.
        self._tells = self._is_at_its_path()

    def has_its_name(self) -> bool:
        """Whether its path still leads to it: not where it was moved or removed, or its directory was."""
        return not self._tells or self._is_at_its_path()

    def close(self) -> None:
        """Let go of it. A descriptor that other code closed, and that is something else by now, is left alone."""
        if self._is_at_its_descriptor():
            os.close(self.fd)

    def blind(self) -> None:
        """Let go of it, and let what is written to the descriptor go nowhere."""
        if self._is_at_its_descriptor():
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fd, inheritable=False)
            os.close(null)

    def _is_at_its_descriptor(self) -> bool:
        with contextlib.suppress(OSError):
            info = os.fstat(self.fd)
            return (info.st_dev, info.st_ino) == (self.dev, self.ino)
        return False

    def _is_at_its_path(self) -> bool:
        return _leads_to(self.path, None, self.dev, self.ino)


class LogFiles:
    """The logs of one handler, of which it has one at a time.

    Args:
        directory: where.
        names: what they are called.
        permissions: of a new one; None for ``0o666`` less the umask.
        durable: sync the directory after a new one was made in it.
    """

    def __init__(self, directory: LogDirectory, names: LogNames, permissions: int | None, durable: bool) -> None:
        self._directory, self._names = directory, names
        self._permissions, self._durable = permissions, durable

    @property
    def directory(self) -> str:
        """The path of the directory."""
        return self._directory.path

    def prepare(self) -> None:
        """Make the directory, and hand it over to the user who will write, while this process may do that."""
        if future_owner() is not None:
            with contextlib.suppress(OSError), self._directory.opened(self._durable):
                pass

    def open(self, day: Date | None, first: int, room: float) -> LogFile:
        """A log that no other process writes: the first that nobody holds, or a new one.

        Args:
            day: the day in its name.
            first: the number to begin with.
            room: bytes that it may hold already.

        Raises:
            OSError: none can be opened or made.
        """
        for _ in range(_TIMES):
            try:
                return self._open(day, first, room)
            except FileNotFoundError:
                if not self._directory.exists():
                    raise
        return self._open(day, first, room)

    def _open(self, day: Date | None, first: int, room: float) -> LogFile:
        with self._directory.opened(self._durable) as parent:
            number, name, fd = self._find(parent, day, first, room)
            try:
                if self._durable:
                    _sync(parent)
                return LogFile(os.path.join(self._directory.path, name), number, fd)
            except BaseException:
                os.close(fd)
                raise

    def _find(self, parent: int, day: Date | None, first: int, room: float) -> tuple[int, str, int]:
        made = 0
        for number in range(first, MAX_NUMBER):
            name = self._names.number(day, number)
            is_new, fd = self._look(parent, name, room)
            if fd is None:
                continue
            try:
                if _lock(fd) and (is_new or _is_the_one(parent, name, fd, room)):
                    return number, name, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            made += is_new
            if made == _TIMES:
                break  # the file system does not give back what was put there: no use to go on
        while True:
            name = self._names.unique(day)
            with contextlib.suppress(FileExistsError):  # another handler of this process was first
                return MAX_NUMBER, name, self._create(parent, name)

    def _look(self, parent: int, name: str, room: float) -> tuple[bool, int | None]:
        """A descriptor of the file of that name, made where it is missing (then True); None where it is not fit."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return True, self._create(parent, name)
            return False, None
        # Asked before it is opened, too: to open a device or a FIFO has effects.
        if not _is_fit(info, room):
            return False, None
        try:
            return False, os.open(name, _FLAGS, dir_fd=parent)
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                return False, None
            raise

    def _create(self, parent: int, name: str) -> int:
        mode = 0o666 if self._permissions is None else self._permissions
        fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, mode, dir_fd=parent)
        if self._permissions is not None:
            with contextlib.suppress(OSError):  # a file system without modes
                os.fchmod(fd, self._permissions)  # whatever the umask
        return fd


def _lock(fd: int) -> bool:
    """Have it for oneself."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; or the file system has no such lock: then only names that nobody else makes are safe
        return False
    return True


def _is_the_one(parent: int, name: str, fd: int, room: float) -> bool:
    """Whether a locked file that was there before is still what was looked up."""
    info = os.fstat(fd)
    # A sidecar may have moved it between the look-up of the name and the opening. Once it is open for writing
    # under its own name, no lease on it is granted any more.
    return _is_fit(info, room) and _leads_to(name, parent, info.st_dev, info.st_ino)


def _sync(directory: int) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot; whether the record is on the disk is told
        os.fsync(directory)


def _is_fit(info: os.stat_result, room: float) -> bool:
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1 and info.st_size <= room


def _leads_to(path: str, parent: int | None, dev: int, ino: int) -> bool:
    try:
        info = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == (dev, ino)
