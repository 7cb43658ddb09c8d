"""The other sidecars on the spool: when one dies, what it was at is taken over at once.

For each that lives a thread waits in the kernel for the lock on its slot, which is granted at the moment of
its death. No clock is asked, and nothing is polled.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from sharedvol import FileLock, LockError, LockTimeout
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.transfer.claims import Claims, slot_lock


class Peers:
    """Watches the slots of the others.

    Args:
        wake: called, in another thread, when one of the others has ended.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # By inode: after a fault the claims are opened anew, and a thread that waits for the same lock goes on.
        self._watched: set[tuple[int, int]] = set()
        self._ended = False

    def have_ended(self) -> bool:
        """Whether one has ended since the last call."""
        ended, self._ended = self._ended, False
        return ended

    def watch(self, claims: Claims) -> int:
        """Watch whoever came since the last look. Returns how many others there are.

        Args:
            claims: tells the slots.
        """
        for slot in claims.other_slots():
            key = _inode(claims.slot_lock(slot))
            if key is None or key in self._watched:
                continue
            with contextlib.suppress(LockTimeout):
                with claims.slot_lock(slot).acquire(timeout=0):
                    pass
                continue  # nobody has it
            self._watched.add(key)
            try:
                movers = claims.movers.duplicate()  # the thread may outlive the claims
                threading.Thread(target=self._wait, args=(movers, slot, key), daemon=True, name=f"peer-{slot}").start()
            except (RuntimeError, OSError):  # no more threads or descriptors: the interval finds what it left
                self._watched.discard(key)
        return len(self._watched)

    def _wait(self, movers: Directory, slot: str, key: tuple[int, int]) -> None:
        try:
            with movers, slot_lock(movers, slot).acquire(timeout=None):
                pass
        except LockError:
            return  # the directory is gone; the pass tells
        finally:
            self._watched.discard(key)
        self._ended = True
        self._wake()


def _inode(lock: FileLock) -> tuple[int, int] | None:
    try:
        info = os.stat(lock.path)
    except OSError:
        return None
    return info.st_dev, info.st_ino
