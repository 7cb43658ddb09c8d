"""GET_LOCK and RELEASE_LOCK on one session: asked for, waited for, given back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, LockDeadlockError, LockError, LockTimeout
from sharedvol.locks.mysql.server import LockHolder, Server
from sharedvol.locks.mysql.token_table import find_holder

_POLL_SECONDS: Final = 0.05  # for what is left of a second, which MySQL would round
_DEADLOCKS: Final = (1213, 3058)  # ER_LOCK_DEADLOCK, ER_USER_LOCK_DEADLOCK
_INTERRUPTED: Final = 1317  # ER_QUERY_INTERRUPTED, by KILL QUERY; MariaDB answers NULL instead
_TIMED_OUT: Final = 3024  # ER_QUERY_TIMEOUT, by MySQL's max_execution_time
# MariaDB answers NULL when max_statement_time ends a wait, as it does after KILL QUERY.
_GET_LOCK: Final = {
    "mysql": "SELECT GET_LOCK(:name, :seconds), CONNECTION_ID()",
    "mariadb": "SET STATEMENT max_statement_time = 0 FOR SELECT GET_LOCK(:name, :seconds), CONNECTION_ID()",
}


@dataclass(frozen=True)
class Waiting:
    """Told while a lock is waited for.

    Attributes:
        name: the lock's name on the server.
        holder: who has it; None if it was let go of in the meantime, or the server does not say.
        waited: seconds since the wait began.
        timeout: seconds that were allowed; None for ever.
    """

    name: str
    holder: LockHolder | None
    waited: float
    timeout: float | None


class NamedLockRequest:
    """One name on one session.

    Attributes:
        name: the lock's name on the server.
        in_doubt: whether the session may have the lock. True from the question on until the answer has arrived:
            what interrupts us may come later than the grant.
        session: the session that was granted it, as the server numbers them.
    """

    def __init__(self, database: Database, server: Server, name: str) -> None:
        self.database, self.server, self.name = database, server, name
        self.in_doubt = False
        self.session: int | None = None

    def wait(self, begun: float, limit: float | None, on_wait: Callable[[Waiting], object] | None) -> None:
        """Ask until it is ours, or ``limit`` seconds have passed since ``begun`` by the monotonic clock.

        Raises:
            LockTimeout: it was not free in time.
            LockDeadlockError, LockError, DatabaseError: as `NamedLock.acquire`.
        """
        database = self.database
        longest = 60.0 if on_wait is None else 5.0
        if database.read_timeout is not None:
            longest = min(longest, database.read_timeout / 2)  # the driver would give up on the answer
        slice_ = 0.0
        while True:
            if self._ask(slice_):
                return
            waited = time.monotonic() - begun
            left = math.inf if limit is None else limit - waited
            holder = find_holder(database, self.server, self.name) if on_wait is not None or left <= 0 else None
            if left <= 0:
                raise LockTimeout(self.name, limit or 0.0, holder)
            if on_wait is not None and (slice_ >= 1 or slice_ == 0):
                on_wait(Waiting(self.name, holder, waited, limit))
            # Short at first, so that the first report of a holder is soon followed by a better one; a longer
            # slice keeps the place in the server's queue longer.
            slice_ = min(left, longest, 1.0 if slice_ == 0 else longest)
            if self.server.flavour == "mysql":
                if slice_ < 1:
                    time.sleep(min(slice_, _POLL_SECONDS))
                    slice_ = 0.01  # rounds to no wait
                else:
                    slice_ = math.floor(slice_)

    def _ask(self, seconds: float) -> bool:
        self.in_doubt = True
        try:
            ((answer, self.session),) = self.database.query(
                _GET_LOCK[self.server.flavour], name=self.name, seconds=seconds
            )
        except DatabaseError as error:
            self.in_doubt = False
            if error.code in _DEADLOCKS:
                raise LockDeadlockError(f"waiting for lock {self.name!r} would never end: {error}") from error
            if error.code == _TIMED_OUT:
                return False
            if error.code == _INTERRUPTED:
                raise LockError(f"lock {self.name!r}: the wait was killed: {error}") from error
            raise
        self.in_doubt = granted = bool(answer == 1)
        if answer is None:
            raise LockError(
                f"lock {self.name!r}: the server answered NULL: the wait was killed, or it has no memory left"
            )
        return granted

    def free(self) -> bool:
        """Whether the session had the lock, which it has no more."""
        ((released,),) = self.database.query("SELECT RELEASE_LOCK(:name)", name=self.name)
        return bool(released == 1)

    def is_kept(self, database: Database) -> bool:
        """Whether the session still has it, asked on any connection to the server."""
        ((kept,),) = database.query("SELECT IS_USED_LOCK(:name) = :session", name=self.name, session=self.session)
        return bool(kept)
