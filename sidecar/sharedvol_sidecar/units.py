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
from collections.abc import Iterator

from sharedvol import FileLock, LockTimeout
from sharedvol_sidecar.claims import open_private
from sharedvol_sidecar.directories import Directory

LOCKS = 256
"""Lock files, which units share by a hash: so there is never one to make for a container that comes."""


class Units:
    """The units that one sidecar works on.

    Args:
        spool: the spool's root.
        wait: seconds to wait for a unit that another sidecar has.
    """

    def __init__(self, spool: Directory, wait: float = 0.0) -> None:
        self._locks = open_private(spool).make("units", 0o700)[0]
        self._wait = wait
        self._held: dict[str, FileLock] = {}

    def take(self, name: str) -> bool:
        """Whether the unit is ours now; until `release`."""
        key = _key(name)
        if key in self._held:
            return True
        # By the descriptor: whoever may write the spool's root could put another directory in the path.
        lock = FileLock(f"/proc/self/fd/{self._locks.fd}/{key}.lock", mode=0o600)
        try:
            lock.acquire(timeout=self._wait)
        except LockTimeout:
            return False
        self._held[key] = lock
        return True

    def release(self, keep: str | None = None) -> None:
        """Let all go but ``keep``. Call it when what was found in them has been moved."""
        kept = _key(keep) if keep is not None else None
        for key in [key for key in self._held if key != kept]:
            self._held.pop(key).release()

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """The unit for a moment: yields whether it is ours."""
        had = _key(name) in self._held
        mine = self.take(name)
        try:
            yield mine
        finally:
            if mine and not had:
                self._held.pop(_key(name)).release()


def _key(name: str) -> str:
    return f"{zlib.crc32(os.fsencode(name)) % LOCKS:02x}"
