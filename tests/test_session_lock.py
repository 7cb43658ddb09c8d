"""What the locks of all servers have in common, without a server."""

from __future__ import annotations

import threading

from processes import LIMIT

from sharedvol import LockTimeout
from sharedvol.locks.session import SessionLock


class Granted(SessionLock):
    """A lock that its server grants at once."""

    def __init__(self) -> None:
        super().__init__("x", None, False, "")

    def _reset(self) -> None:
        pass

    def _begin(self, begun: float, limit: float | None) -> None:
        pass

    def _end(self) -> None:
        self._depth = 0

    def _let_go(self) -> None:
        pass


def test_the_lock_of_a_thread_that_ended_is_no_other_threads() -> None:
    lock, refused = Granted(), []

    def use() -> None:
        try:
            lock.acquire(timeout=0)
        except LockTimeout:
            refused.append(threading.get_ident())

    for _ in range(10):  # the system gives the number of a thread that ended to the next one
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(LIMIT)
    assert len(refused) == 9
