"""Locks on containers: one for each directory at the top of the spool.

Several sidecars on one spool share the work by these locks. The sidecar that holds a container's lock scans it, moves
what it finds and follows its logs; the others continue with the next container. The kernel frees the lock of a sidecar
that is killed. The claims, not these locks, ensure that no file is moved twice. The locks ensure that a log has one
follower at a time.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator

from sharedvol import FileLock, LockFileError, LockTimeout
from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import open_private, private_lock
from sharedvol_sidecar.fs.spares import SpareFiles

LOCKS = 256
"""Lock files. Containers share them by a hash, so a new container needs no new file."""


class ContainerLocks:
    """The containers that one sidecar works on.

    Args:
        spool: the spool's root.
        wait: seconds to wait for a container that another sidecar works on.
        taken: called after a lock was taken, to read again what the locks guard.
    """

    def __init__(self, spool: Directory, wait: float = 0.0, taken: Callable[[], None] = lambda: None) -> None:
        with open_private(spool) as private:
            self._locks = private.make("units", 0o700)[0]
        self._wait, self._taken = wait, taken
        self._spares = SpareFiles(self._locks)
        self._spares.fill()
        self.without_room = False
        """Whether a container could not be locked in this pass, because the spool has no room."""
        self._held: dict[str, FileLock] = {}

    def acquire(self, name: str) -> bool:
        """Lock a container until `release`. Return False if another sidecar holds it."""
        return self._acquire_within(name, self._wait)

    def acquire_now(self, name: str) -> bool:
        """Do the same without waiting, for a sidecar that holds another container: two could wait for each other."""
        return self._acquire_within(name, 0.0)

    def _acquire_within(self, name: str, wait: float) -> bool:
        key = _key(name)
        if key in self._held:
            return True
        # By the descriptor: a process that may write the spool's root could put another directory in the path.
        lock = private_lock(f"/proc/self/fd/{self._locks.fd}/{key}.lock")
        try:
            self._acquire_lock(lock, wait)
        except LockTimeout:
            return False
        except LockFileError as error:
            if error.errno not in FULL:
                raise
            self.without_room = True
            return False
        self._held[key] = lock
        try:
            self._taken()
        except BaseException:
            self._held.pop(key).release()
            raise
        return True

    def _acquire_lock(self, lock: FileLock, wait: float) -> None:
        try:
            lock.acquire(timeout=wait)
        except LockFileError as error:
            if error.errno not in FULL or not self._spares.use_as(lock.path.name):
                raise
            lock.acquire(timeout=wait)

    def new_pass(self) -> None:
        """Begin a pass: there may be room again."""
        self.without_room = False
        self._spares.fill()

    def release(self, keep: str | None = None) -> None:
        """Release all but ``keep``. Call it when what was found in them has been moved."""
        kept = _key(keep) if keep is not None else None
        for key in [key for key in self._held if key != kept]:
            self._held.pop(key).release()

    def close(self) -> None:
        """Release all, and close the directory of the locks. Does nothing the second time."""
        try:
            self.release()
        finally:
            self._held.clear()  # after a lock that was lost: the others go with their last reference
            self._locks.close()

    def holds(self, name: str) -> bool:
        """Return whether this sidecar has locked a container."""
        return _key(name) in self._held

    @contextlib.contextmanager
    def holding(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Lock a container for a block of code. Yield False if another sidecar holds it."""
        had = self.holds(name)
        mine = self.acquire(name) if wait else self.acquire_now(name)
        try:
            yield mine
        finally:
            if mine and not had:
                self._held.pop(_key(name)).release()


def _key(name: str) -> str:
    return f"{zlib.crc32(os.fsencode(name)) % LOCKS:02x}"
