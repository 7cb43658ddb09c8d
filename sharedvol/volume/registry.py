"""The register of the replicas on a volume: its files, and the locks that show which replicas are alive.

::

    .replicas/                 mode 1777, for replicas of every user
      join.lock                held during a join or a removal
      names/<name>.lock        held shared by each process of the replica while it lives
      names/<name>.json        the replica's record, which never overrides the lock
      slots/<n>.lock           held like the name's lock

Only the lock shows whether a replica is alive. The kernel frees it when the last holder dies and not before, so no
clock is needed to distinguish a dead replica from a slow one. A reader queries the lock and does not take it, so it
never delays a process that joins. The name is locked last: once it is locked, everything else about the replica is
valid.

Any process that may write the volume can write here, so everything is checked before it is used. Files are opened
relative to descriptors of directories and symbolic links are not followed. A directory that is swapped between two
steps only changes where the register is written. Only regular files are read, and only their beginnings.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from sharedvol import forks
from sharedvol.errors import LockFileError, NetworkFileSystemError, PresenceError, describe, remedy
from sharedvol.filesystem import open_subdirectory, open_top
from sharedvol.locks.file import linux
from sharedvol.locks.file.below import LockBelow
from sharedvol.locks.file.fork import close_tracked, track
from sharedvol.network import ALLOWED, NetworkPolicy
from sharedvol.volume.open_register import OpenRegister
from sharedvol.volume.record import MAX_SLOTS
from sharedvol.volume.register_making import GATE, PARTS, make_register, remove_skeletons

DIRECTORY: Final = ".replicas"
_UNUSABLE: Final = (errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.EACCES)
_TRIES: Final = 100


class LifetimeLock:
    """A lock that a process holds shared until it ends or calls `release`.

    Unlike a `FileLock` it does not belong to a thread. A forked child starts without it.

    Args:
        directory: a descriptor of the lock file's directory.
        path: the lock file. Only its last part is opened.

    Raises:
        LockFileError: the file cannot be opened.
    """

    def __init__(self, directory: int, path: str) -> None:
        self._path = path
        self._handle: Any = track(linux, lambda: linux.open_lock_file(path, 0o666, directory))
        forks.track(self)

    def renew(self) -> None:
        """Drop the handle in a forked child, where `sharedvol.locks.file.fork` has closed the descriptor."""
        self._handle = None

    def is_held(self) -> bool:
        """Return whether any process, including this one, holds the lock through another descriptor."""
        return linux.conflict(self._handle) is not None

    def acquire(self, directory: int) -> bool:
        """Acquire the lock shared. Return False if a process holds it exclusively."""
        identity = linux.identify(self._handle, self._path)
        return linux.try_both(self._handle, self._path, True) and linux.is_current(self._path, identity, directory)

    def release(self) -> None:
        """Unlock and close."""
        forks.notice()
        close_tracked(linux, self._handle)


class ReplicaRegistry:
    """The directory ``.replicas`` of one volume. A process that changes it holds ``join.lock``.

    Args:
        volume: the volume's absolute path.
        root: a descriptor of the volume, which the caller closes; without it the path is opened for each use.
        network: what to do about a network file system.
    """

    def __init__(self, volume: str, root: int | None = None, network: NetworkPolicy = ALLOWED) -> None:
        self._volume, self._root, self._network = volume, root, network
        self._top = os.path.join(volume, DIRECTORY)
        self.gate = os.path.join(self._top, GATE)

    @contextlib.contextmanager
    def open(self) -> Iterator[OpenRegister | None]:
        """Open the register. Yield None if no replica ever joined.

        Raises:
            PresenceError: it cannot be opened, or does not conform to the protocol.
            NetworkFileSystemError: the volume is on a network file system, which ``network`` refuses.
        """
        opened: list[int] = []
        try:
            try:
                opened.append(self._open_root())
                self._network.check(opened[0], "volume", self._volume)
                opened.append(open_subdirectory(DIRECTORY, opened[0]))
                for part in PARTS:
                    opened.append(open_subdirectory(part, opened[1]))
            except FileNotFoundError:
                yield None
                return
            except NetworkFileSystemError:
                raise
            except OSError as error:
                raise self._error("open", error) from error
            self._check(opened)
            yield OpenRegister(self._top, *opened[1:])
        finally:
            for fd in opened:
                os.close(fd)

    @contextlib.contextmanager
    def existing(self) -> Iterator[OpenRegister]:
        """Open a register that must exist.

        Raises:
            PresenceError: as for `open`; or it is missing.
        """
        with self.open() as found:
            if found is None:
                raise PresenceError(f"{self._top!r} was removed while it was in use: join the volume again")
            yield found

    def gate_lock(self, timeout: float) -> LockBelow:
        """Return the lock that a process holds while it changes the register."""

        @contextlib.contextmanager
        def directory() -> Iterator[int]:
            with self.existing() as found:
                yield found.top

        return LockBelow(self.gate, directory, timeout=timeout, allow_network=True)  # `open` has checked

    def name_lock(self, name: str) -> LockBelow:
        """Return the lock of a name, for a process that removes a dead replica."""

        @contextlib.contextmanager
        def directory() -> Iterator[int]:
            with self.existing() as found:
                yield found.names

        path = os.path.join(self._top, "names", f"{name}.lock")
        return LockBelow(path, directory, timeout=0, allow_network=True)

    def make(self) -> None:
        """Make the register if it is missing.

        Raises:
            PresenceError: it cannot be made.
        """
        for _ in range(_TRIES):
            with self.open() as found:
                if found is not None:
                    return
            try:
                self._make()
            except OSError as error:
                # A process that was first removes this skeleton, which makes this fail in several ways.
                if not os.path.isdir(os.path.join(self._volume, DIRECTORY)):
                    raise self._error("make", error) from error
        raise PresenceError(f"cannot make {self._top!r}: other processes keep removing it; find and stop them")

    def _make(self) -> None:
        root = self._open_root()
        try:
            make_register(root, DIRECTORY)
            remove_skeletons(root, DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with self.open() as found:
                if found is None:  # a directory is there, but not a register
                    raise PresenceError(
                        f"{self._top!r} is not a whole register of replicas: remove it while no replica runs"
                    ) from error
            remove_skeletons(root, DIRECTORY)
        finally:
            os.close(root)

    def _open_root(self) -> int:
        if self._root is not None:
            return os.dup(self._root)
        return open_top(self._volume)

    def _check(self, opened: list[int]) -> None:
        """Refuse directories that are not made by the protocol, because they may belong to another program."""
        volume, top, *_ = found = [os.fstat(fd) for fd in opened]
        for info, part in zip(found[1:], ("", *PARTS), strict=True):
            why = None
            if info.st_dev != volume.st_dev:
                why = "is on another file system than the volume"
            elif info.st_uid != top.st_uid:
                why = f"belongs to user {info.st_uid}, and the register to user {top.st_uid}"
            elif info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
                why = f"has mode {stat.S_IMODE(info.st_mode):04o}, so other users can replace its files (not 1777)"
            if why is not None:
                raise PresenceError(
                    f"{os.path.join(self._top, part).rstrip('/')!r} {why}: it is not used; remove {self._top!r} while "
                    "no replica runs, and the next to join makes it again"
                )

    def _error(self, what: str, error: OSError) -> PresenceError:
        hint = remedy(
            error,
            ENOENT="create the directory, or mount its volume",
            EROFS="mount the volume read-write, because a replica that joins writes there",
            EACCES="give user {user} access to the volume's directory",
            ENOTDIR="remove what has its name; symbolic links are never followed",
            ELOOP="remove the symbolic link with its name; links are never followed",
        )
        return PresenceError(f"cannot {what} {self._top!r}: {describe(error)}; {hint}")


def claim_slot(register: OpenRegister) -> tuple[int, LifetimeLock]:
    """Acquire the lowest free slot, and return it with its lock.

    Raises:
        LockFileError: a slot's file cannot be opened or locked.
        PresenceError: there is no free slot.
    """
    for slot in range(MAX_SLOTS):
        try:
            claim = LifetimeLock(register.slots, register.slot_lock(slot))
        except LockFileError as error:
            if error.errno in _UNUSABLE:
                continue  # this name is not of a lock file, so the slot is not free
            raise
        try:
            if not claim.is_held() and claim.acquire(register.slots):
                return slot, claim
        except BaseException:
            claim.release()
            raise
        claim.release()
    raise PresenceError(f"all {MAX_SLOTS} slots of {register.path!r} are taken: find the processes that hold them")
