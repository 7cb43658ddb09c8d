"""The shares of the work: one for each directory at the top of the spool, which mostly is a container.

Several sidecars on one spool share the work by these locks: who has a unit's lock scans it, moves what it
finds and follows its logs, and the others go on to the next unit. The kernel frees the lock of one that is
killed. That no file is moved twice does not rest on it: for that there are the claims. What does rest on it is that
a log has one follower at a time.
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
"""Lock files, which units share by a hash: so there is never one to make for a container that comes."""


class ContainerLocks:
    """The units that one sidecar works on.

    Args:
        spool: the spool's root.
        wait: seconds to wait for a unit that another sidecar has.
        taken: called after a lock was taken, to read again what the locks guard.
    """

    def __init__(self, spool: Directory, wait: float = 0.0, taken: Callable[[], None] = lambda: None) -> None:
        with open_private(spool) as private:
            self._locks = private.make("units", 0o700)[0]
        self._wait, self._taken = wait, taken
        self._spares = SpareFiles(self._locks)
        self._spares.fill()
        self.without_room = False
        """Whether a unit could not be locked in this pass, because the spool has no room."""
        self._held: dict[str, FileLock] = {}

    def take(self, name: str) -> bool:
        """Lock a unit until `release`. Return False if another sidecar has it."""
        return self._take(name, self._wait)

    def take_now(self, name: str) -> bool:
        """The same without waiting, for a sidecar that has another unit already: two could wait for each other."""
        return self._take(name, 0.0)

    def _take(self, name: str, wait: float) -> bool:
        key = _key(name)
        if key in self._held:
            return True
        # By the descriptor: whoever may write the spool's root could put another directory in the path.
        lock = private_lock(f"/proc/self/fd/{self._locks.fd}/{key}.lock")
        try:
            self._acquire(lock, wait)
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

    def _acquire(self, lock: FileLock, wait: float) -> None:
        try:
            lock.acquire(timeout=wait)
        except LockFileError as error:
            if error.errno not in FULL or not self._spares.use_as(lock.path.name):
                raise
            lock.acquire(timeout=wait)

    def new_pass(self) -> None:
        """A pass begins: there may be room again."""
        self.without_room = False
        self._spares.fill()

    def release(self, keep: str | None = None) -> None:
        """Let all go but ``keep``. Call it when what was found in them has been moved."""
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
        """Return whether this sidecar has locked a unit."""
        return _key(name) in self._held

    @contextlib.contextmanager
    def held(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Lock a unit for a moment. Yields False if another sidecar has it."""
        had = self.holds(name)
        mine = self.take(name) if wait else self.take_now(name)
        try:
            yield mine
        finally:
            if mine and not had:
                self._held.pop(_key(name)).release()


def _key(name: str) -> str:
    return f"{zlib.crc32(os.fsencode(name)) % LOCKS:02x}"
