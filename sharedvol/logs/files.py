"""The files of a `sharedvol.logs.ReplicaFileHandler`: how a process gets one that no other process writes.

Each file has one writer at a time, which holds flock(2) on it and takes that lock without waiting. So each process
finds a file without communication with the others: the first one that is unlocked and has room. A killed process frees
its file at once, and the next process to start continues it.

Any process that may write the directory can put files there, so everything is checked: symbolic links are not followed,
and a file is skipped if it is not regular, belongs to another user, or has a second name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from datetime import date as Date

from sharedvol.filesystem import open_file, open_subdirectory, open_top
from sharedvol.logs.names import MAX_NUMBER, LogNames
from sharedvol.logs.owner import OwnDirectories, future_owner
from sharedvol.network import NetworkPolicy
from sharedvol.paths import PathLike

_CONTAINER = "{container}"
_TRIES = 10  # a sidecar may remove a new, empty directory of a replica that seems dead
_FLAGS = os.O_RDWR | os.O_APPEND
# Errors of open(2) that concern only this one name. With EAGAIN the sidecar has a lease on the file, because it is
# about to move it; see fcntl(2).
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
    """The directory of a replica's logs.

    From the part with ``{container}`` on, or else the last part, missing directories are made and symbolic links are
    not followed. The parts before that must exist. They are the mounted volume: if it were not mounted, the log would
    be lost with the container.

    Args:
        template: the path of the directory.
        container: the name that replaces ``{container}``.
    """

    def __init__(self, template: PathLike, container: str) -> None:
        parts = os.path.abspath(os.fspath(template)).split("/")
        own = next((i for i, part in enumerate(parts) if _CONTAINER in part), len(parts) - 1)
        self._base = "/".join(parts[:own]) or "/"
        self._below = [part.replace(_CONTAINER, container) for part in parts[own:] if part]
        self._owned = OwnDirectories(own=any(_CONTAINER in part for part in parts))
        self.path = os.path.join(self._base, *self._below)

    def exists(self) -> bool:
        """Return whether the part that must exist is there."""
        return os.path.isdir(self._base)

    def check(self, network: NetworkPolicy) -> None:
        """Check the file system of the directory, or of the part that exists.

        Raises:
            NetworkFileSystemError: ``network`` refuses it.
        """
        for path in (self.path, self._base):  # either may be the mount point
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # it does not exist yet
            try:
                network.check(fd, "log directory", self.path)
            finally:
                os.close(fd)
            return

    @contextlib.contextmanager
    def opened(self, durable: bool) -> Iterator[int]:
        """Open the directory for the block, and make it if it is missing. Yield its descriptor.

        Args:
            durable: sync the directories in which a directory is made.

        Raises:
            OSError: it cannot be opened or made.
        """
        fd = self._descend(open_top(self._base), durable)
        try:
            yield fd
        finally:
            os.close(fd)

    def _descend(self, fd: int, durable: bool) -> int:
        above = os.fstat(fd)
        for part in self._below:
            made = False
            try:
                try:
                    inside = open_subdirectory(part, fd)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                        made = True
                    if durable:
                        _sync(fd)
                    inside = open_subdirectory(part, fd)
            finally:
                os.close(fd)
            fd = inside
            try:
                above = self._set_owner(fd, above, made)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _set_owner(self, fd: int, above: os.stat_result, made: bool) -> os.stat_result:
        """Give a directory to the user who will write. Return its status from before."""
        info = os.fstat(fd)
        if made:
            self._owned.made(fd)
        self._owned.hand_over(fd, above)
        return info


class LogFile:
    """An open log that no other process writes.

    Attributes:
        path: its path when it was opened.
        number: its number among the logs of the day.
        fd: a descriptor that is open for appending.
        torn: whether its last line is incomplete, because its last writer was killed during a write.
    """

    def __init__(self, path: str, number: int, fd: int) -> None:
        self.path, self.number, self.fd = path, number, fd
        info = os.fstat(fd)
        self.dev, self.ino = info.st_dev, info.st_ino
        self.torn = info.st_size > 0 and os.pread(fd, 1, info.st_size - 1) != b"\n"
        # On a file system with unstable inode numbers, a moved file cannot be detected.
        self._has_stable_inode = self._is_at_its_path()

    def has_its_name(self) -> bool:
        """Return whether its path still leads to it. False if it or its directory was moved or removed."""
        return not self._has_stable_inode or self._is_at_its_path()

    def close(self) -> None:
        """Close the descriptor, unless other code closed it and its number now belongs to another file."""
        if self._is_at_its_descriptor():
            os.close(self.fd)

    def blind(self) -> None:
        """Redirect the descriptor to /dev/null, so that what is written to it does not reach the file."""
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
    """The logs of one handler, which writes one of them at a time.

    Args:
        directory: their directory.
        names: their names.
        permissions: the mode of a new log; None for ``0o666`` less the umask.
        durable: sync the directory after a new log was made in it.
    """

    def __init__(self, directory: LogDirectory, names: LogNames, permissions: int | None, durable: bool) -> None:
        self._directory, self._names = directory, names
        self._permissions, self._durable = permissions, durable

    @property
    def directory(self) -> str:
        """The path of the directory."""
        return self._directory.path

    def prepare(self) -> None:
        """Make the directory and give it to the user who will write, while this process is still allowed to do so."""
        if future_owner() is not None:
            with contextlib.suppress(OSError), self._directory.opened(self._durable):
                pass

    def open(self, day: Date | None, first: int, room: float) -> LogFile:
        """Open a log that no other process writes: the first one that is unlocked, or a new one.

        Args:
            day: the day in its name.
            first: the number to begin with.
            room: the size in bytes that the log may already have.

        Raises:
            OSError: no log can be opened or made.
        """
        for _ in range(_TRIES):
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
            is_new, fd = self._open_or_create(parent, name, room)
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
            if made == _TRIES:
                break  # new files cannot be found or locked on this file system, so more tries would fail as well
        while True:
            name = self._names.unique(day)
            with contextlib.suppress(FileExistsError):  # another handler of this process made it first
                return MAX_NUMBER, name, self._create(parent, name)

    def _open_or_create(self, parent: int, name: str, room: float) -> tuple[bool, int | None]:
        """Open the file of that name, and make it if it is missing.

        Returns:
            Whether the file is new, and its descriptor; None instead of a descriptor if it cannot be used.
        """
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return True, self._create(parent, name)
            return False, None
        # Check before opening as well, because opening a device or a FIFO has effects.
        if not _is_fit(info, room):
            return False, None
        try:
            return False, open_file(name, parent, _FLAGS)
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                return False, None
            raise

    def _create(self, parent: int, name: str) -> int:
        mode = 0o666 if self._permissions is None else self._permissions
        fd = open_file(name, parent, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
        if self._permissions is not None:
            with contextlib.suppress(OSError):  # a file system without modes
                os.fchmod(fd, self._permissions)  # the umask may have removed bits
        return fd


def _lock(fd: int) -> bool:
    """Lock a log. Return False if another process has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or not supported here: then only a unique name is safe
        return False
    return True


def _is_the_one(parent: int, name: str, fd: int, room: float) -> bool:
    """Return whether a file that existed before is still usable and at its name, now that it is locked."""
    info = os.fstat(fd)
    # A sidecar may have moved it between stat(2) and open(2). Once it is open for writing under its own name, the
    # kernel grants no lease on it.
    return _is_fit(info, room) and _leads_to(name, parent, info.st_dev, info.st_ino)


def _sync(directory: int) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot; a failed fsync of the log itself is reported
        os.fsync(directory)


def _is_fit(info: os.stat_result, room: float) -> bool:
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1 and info.st_size <= room


def _leads_to(path: str, parent: int | None, dev: int, ino: int) -> bool:
    try:
        info = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == (dev, ino)
