"""The other sidecars on the spool: when one dies, what it was at is taken over at once.

For each that lives a thread waits in the kernel for the lock on its slot, which is granted at the moment of
its death. No clock is asked, and nothing is polled.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from sharedvol import LockError, LockTimeout
from sharedvol_sidecar.claims import Claims


class Peers:
    """Watches the slots of the others.

    Args:
        claims: tells the slots.
        wake: called, in another thread, when one of the others has ended.
    """

    def __init__(self, claims: Claims, wake: Callable[[], None]) -> None:
        self._claims, self._wake = claims, wake
        self._watched: set[str] = set()

    def look(self) -> int:
        """Watch whoever came since the last look. Returns how many others there are."""
        for slot in self._claims.other_slots():
            if slot in self._watched:
                continue
            with contextlib.suppress(LockTimeout):
                with self._claims.slot_lock(slot).acquire(timeout=0):
                    pass
                continue  # nobody has it
            self._watched.add(slot)
            try:
                threading.Thread(target=self._watch, args=(slot,), daemon=True, name=f"peer-{slot}").start()
            except RuntimeError:  # no more threads: the interval finds what it left
                self._watched.discard(slot)
        return len(self._watched)

    def _watch(self, slot: str) -> None:
        try:
            with self._claims.slot_lock(slot).acquire(timeout=None):
                pass
        except LockError:
            return  # the directory is gone; the pass tells
        finally:
            self._watched.discard(slot)
        self._wake()
