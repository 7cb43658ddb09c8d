"""A lock that a MySQL or MariaDB server keeps: GET_LOCK, for replicas that share no volume, or no language.

What the servers do (MySQL manual, "Locking Functions"; MariaDB knowledge base, "GET_LOCK"):

- The lock belongs to the session and lasts until it is released or the session ends; COMMIT leaves it.
- Names are the server's, not a schema's. MySQL: 64 characters, case does not matter. MariaDB: 192 bytes, case
  matters. Scoped names are in lower case, so that both servers mean the same.
- The answers are three: 1 it is yours, 0 it is not, NULL it went wrong. MariaDB answers NULL at once to a
  negative wait, so waiting for ever is done in slices here. MySQL rounds fractions of a second.
- The nodes of a Galera cluster or of Group Replication do not share them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from sharedvol.database import Database
from sharedvol.errors import (
    DatabaseError,
    LockDeadlockError,
    LockError,
    LockLostError,
    LockTimeout,
    LockUnsafeError,
    NotLockedError,
)
from sharedvol.locks.server import LockHolder, Server, find_holder, inspect

if TYPE_CHECKING:
    from sharedvol.database import Target

__all__ = ["LockHolder", "NamedLock", "Waiting"]

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05  # for what is left of a second, which MySQL would round


class _Default:
    def __repr__(self) -> str:
        return "the lock's own"


_DEFAULT: Final = _Default()
_DEADLOCKS: Final = (1213, 3058)  # ER_LOCK_DEADLOCK, ER_USER_LOCK_DEADLOCK
_INTERRUPTED: Final = 1317  # ER_QUERY_INTERRUPTED, by KILL QUERY; MariaDB answers NULL instead
_TIMED_OUT: Final = 3024  # ER_QUERY_TIMEOUT, by MySQL's max_execution_time
# MariaDB answers NULL when max_statement_time ends a wait, as it does after KILL QUERY.
_GET_LOCK: Final = {
    "mysql": "SELECT GET_LOCK(:name, :seconds), CONNECTION_ID()",
    "mariadb": "SET STATEMENT max_statement_time = 0 FOR SELECT GET_LOCK(:name, :seconds), CONNECTION_ID()",
}
_RELEASE_TRIES: Final = 20  # through a pooler, until one meets the session that has the lock


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


class _Held:
    """What `acquire` returns: a ``with`` on it releases, and does not acquire again."""

    __slots__ = ("_lock",)

    def __init__(self, lock: NamedLock) -> None:
        self._lock = lock

    def __enter__(self) -> NamedLock:
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)


class NamedLock:
    """An exclusive lock kept by a MySQL or MariaDB server.

    ::

        with NamedLock("mysql://app@db/shop", "nightly-report", timeout=60):
            ...

    Holds one connection of its own from acquire to release, or uses the one that it is given. Re-entrant for
    the thread that holds it; other threads that use the same object wait. A forked child has it no more.
    The server ends a session that is silent for its ``wait_timeout``, and the lock with it: `check` now and then.

    Args:
        target: a URL, an SQLAlchemy ``URL`` or ``Engine``, whose pool is left alone; or an SQLAlchemy ``Connection``,
            whose session is then the holder and which must not be closed or returned to a pool before the release.
        name: what to lock. By default it means something within the schema of the connection only, and the
            name on the server is ``schema.name`` in lower case, shortened where that is too long.
        timeout: seconds to wait; None waits for ever, 0 not at all.
        literal: use ``name`` on the server as it is: to share a lock with others, such as an R replica.
        allow_unsafe: also lock on a node of a cluster or through a pooler, where the lock may exclude nobody.
        on_wait: called with a `Waiting` when the lock is not free, and every few seconds from then on.

    Raises:
        ValueError: ``name`` is empty, or ``timeout`` negative or not a number.
    """

    def __init__(
        self,
        target: Target | Database,
        name: str,
        *,
        timeout: float | None = None,
        literal: bool = False,
        allow_unsafe: bool = False,
        on_wait: Callable[[Waiting], object] | None = None,
    ) -> None:
        if not name:
            raise ValueError("a lock needs a name")
        _check_timeout(timeout)
        self._target, self._asked, self._literal = target, name, literal
        self._timeout, self._allow_unsafe, self._on_wait = timeout, allow_unsafe, on_wait
        self._made_in = os.getpid()
        self._name: str | None = None
        self._server: Server | None = None
        self._inherited = 0
        self._forget()
        _locks[id(self)] = self

    def _forget(self) -> None:
        """Begin with nothing: a new lock, or one in a forked child, which never speaks on its parent's connection."""
        # `with` on these, not on a Condition or a generator, whose Python code an interrupt could leave half-way.
        self._gate, self._talk = threading.RLock(), threading.Lock()
        self._turn = threading.Condition(self._gate)
        self._owner: int | None = None
        self._depth = 0
        self._database: Database | None = None
        self._granted_to: int | None = None
        self._in_doubt = False

    @property
    def server(self) -> Server | None:
        """What the lock's connection leads to; None before the first acquire."""
        return self._server

    @property
    def name(self) -> str | None:
        """The lock's name on the server; None before the first acquire."""
        return self._name

    @property
    def held(self) -> bool:
        """Whether this process acquired it and has not released it. Whether it was lost, `check` tells."""
        return self._depth > 0

    def acquire(self, timeout: float | _Default | None = _DEFAULT) -> _Held:
        """Take the lock, waiting for it on the server. To be undone by `release`, or a ``with`` on what is returned.

        Args:
            timeout: seconds, None for ever, 0 not at all; else as the lock was made.

        Raises:
            LockTimeout: it was not free in time.
            LockDeadlockError: the server saw that the holder waits for a lock of this session.
            LockUnsafeError: the server's lock would not exclude everybody.
            LockError: the name is not one that this server takes, or it answered NULL.
            DatabaseError: the server cannot be reached or refused.
        """
        limit = self._timeout if isinstance(timeout, _Default) else timeout
        _check_timeout(limit)
        begun = time.monotonic()
        held, me = _Held(self), threading.get_ident()
        before = self._depth if self._owner == me else 0
        try:
            self._take_turn(me, limit)
            if before == 0:
                self._begin(begun, limit)
            self._depth = before + 1
            return held
        except BaseException:  # an interrupt too, wherever it strikes
            if self._owner == me:
                self._depth = before
                if before == 0:
                    self._drop()
            raise

    def release(self) -> None:
        """Undo one `acquire`; the last one frees the lock.

        In a forked child, which started without the lock, undoing its parent's acquire does nothing.

        Raises:
            NotLockedError: this thread does not hold it.
            LockLostError: it was lost before.
        """
        if self._depth == 0 and self._inherited:
            self._inherited -= 1
            return
        if not self.held:
            raise NotLockedError(f"lock {self._asked!r} is not held by this process: release it where it was acquired")
        if self._owner != threading.get_ident():
            raise NotLockedError(f"lock {self._asked!r} is held by another thread: release it there")
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._end()
            self._drop()
        except BaseException:  # an interrupt too, also one of the first `_drop`
            if self._owner == threading.get_ident():
                self._drop()
            raise

    def check(self) -> None:
        """Ask the server whether the lock is still ours. One round trip.

        Raises:
            LockLostError: it is not: the connection is gone, or somebody freed the lock on it.
            NotLockedError: it was never acquired, or has been released.
        """
        with self._talk:
            database = self._speaking()
            if database is None:
                raise NotLockedError(f"lock {self._asked!r} is not held by this process")
            try:
                ((holds,),) = database.query("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()", name=self._name)
            except DatabaseError as error:
                raise LockLostError(f"lock {self._name!r} is lost with its connection: {error}") from error
        if not holds:
            raise LockLostError(f"lock {self._name!r} is lost: something on its own connection released it")

    def holder(self) -> LockHolder | None:
        """Who has the lock now, this one included; None if nobody has. Connects if it must."""
        with self._talk:
            ours = self._speaking()
            if ours is not None and self._name is not None:
                return find_holder(ours, self._name)
        database = self._open()
        try:
            return find_holder(database, self._name_on(inspect(database)))
        finally:
            if database is not self._target:
                database.close()

    def __enter__(self) -> NamedLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockLostError:
            if error is None:
                raise
            _log.warning("lock %r was lost before its block failed", self._name)

    def __repr__(self) -> str:
        return f"<NamedLock {self._name or self._asked!r} {'held' if self.held else 'not held'}>"

    def _take_turn(self, me: int, limit: float | None) -> None:
        """Wait for the other threads that use this object."""
        with self._gate:
            wait = None if limit is None else min(limit, threading.TIMEOUT_MAX)
            if not self._turn.wait_for(lambda: self._owner in (None, me), wait):
                raise LockTimeout(self._name or self._asked, limit or 0.0)
            self._owner = me

    def _open(self) -> Database:
        database = self._target if isinstance(self._target, Database) else Database.open(self._target)
        if not database.is_ours or (not database.owned and self._made_in != os.getpid()):
            raise LockError(
                f"lock {self._asked!r} was made on a connection of the parent process: "
                "make one in the child, on a connection of its own"
            )
        return database

    def _begin(self, begun: float, limit: float | None) -> None:
        database = self._database = self._open()
        server = self._server = inspect(database)
        self._name = self._name_on(server)
        if server.cluster and not self._allow_unsafe:
            raise LockUnsafeError(
                f"lock {self._name!r} would not exclude others: {server.cluster}, whose nodes do not share "
                "locks; let all replicas use one node and say allow_unsafe=True, or use another lock"
            )
        if not self._allow_unsafe:
            self._refuse_pooler(database, server.session, server.session)
        self._wait(database, server, begun, limit)
        if not self._allow_unsafe:
            ((holder, now),) = database.query("SELECT IS_USED_LOCK(:name), CONNECTION_ID() + 0", name=self._name)
            self._refuse_pooler(database, server.session, now, holder)

    def _end(self) -> None:
        with self._talk:
            database = self._speaking()
            assert database is not None
            try:
                freed = self._free(database)
            except DatabaseError as error:
                raise LockLostError(f"lock {self._name!r} was lost with its connection: {error}") from error
            self._in_doubt, self._depth = False, 0  # before another thread can ask: it would take it for lost
        if not freed:
            raise LockLostError(f"lock {self._name!r} was lost: something on its own connection released it")

    def _free(self, database: Database) -> bool:
        """Whether the session had the lock."""
        ((released,),) = database.query("SELECT RELEASE_LOCK(:name)", name=self._name)
        return bool(released == 1)

    def _drop(self) -> None:
        """Keep nothing: no lock that may have been granted, no connection of our own, not the turn."""
        try:
            with self._talk:
                database, self._database = self._database, None
                if database is not None:
                    if self._in_doubt and (database is self._target or not database.owned):
                        with contextlib.suppress(DatabaseError):  # gone, and the lock with it
                            self._free(database)
                    if database is not self._target:
                        database.close()
        finally:
            with self._gate:
                self._turn.notify()
                self._in_doubt, self._depth, self._owner = False, 0, None

    def _speaking(self) -> Database | None:
        """The connection of a lock that is held. Under `_talk`: a driver would mix up the answers for two threads."""
        return self._database if self.held else None

    def _wait(self, database: Database, server: Server, begun: float, limit: float | None) -> None:
        name = self._name
        assert name is not None
        longest = 60.0 if self._on_wait is None else 5.0
        if database.read_timeout is not None:
            longest = min(longest, database.read_timeout / 2)  # the driver would give up on the answer
        slice_ = 0.0
        while True:
            if self._ask(database, server, name, slice_):
                return
            waited = time.monotonic() - begun
            left = math.inf if limit is None else limit - waited
            holder = find_holder(database, name) if self._on_wait is not None or left <= 0 else None
            if left <= 0:
                raise LockTimeout(name, limit or 0.0, holder)
            if self._on_wait is not None and (slice_ >= 1 or slice_ == 0):
                self._on_wait(Waiting(name, holder, waited, limit))
            # Short at first, so that the first report of a holder is soon followed by a better one; a longer
            # slice keeps the place in the server's queue longer.
            slice_ = min(left, longest, 1.0 if slice_ == 0 else longest)
            if server.flavour == "mysql":
                if slice_ < 1:
                    time.sleep(min(slice_, _POLL_SECONDS))
                    slice_ = 0.01  # rounds to no wait
                else:
                    slice_ = math.floor(slice_)

    def _ask(self, database: Database, server: Server, name: str, seconds: float) -> bool:
        self._in_doubt = True  # until the answer has arrived: what interrupts us may come later than the grant
        try:
            ((answer, self._granted_to),) = database.query(_GET_LOCK[server.flavour], name=name, seconds=seconds)
        except DatabaseError as error:
            self._in_doubt = False
            if error.code in _DEADLOCKS:
                raise LockDeadlockError(f"waiting for lock {name!r} would never end: {error}") from error
            if error.code == _TIMED_OUT:
                return False
            if error.code == _INTERRUPTED:
                raise LockError(f"lock {name!r}: the wait was killed: {error}") from error
            raise
        self._in_doubt = granted = bool(answer == 1)
        if answer is None:
            raise LockError(f"lock {name!r}: the server answered NULL: the wait was killed, or it has no memory left")
        return granted

    def _refuse_pooler(self, database: Database, *seen: int | None) -> None:
        """Unless all was said on one session: the first question, the last one, the log-in, the lock's grant."""
        told = database.driver_session
        granted, left = "", ""
        if self._in_doubt:
            seen = (*seen, self._granted_to)
            granted = f"granted to connection {self._granted_to}, "
        if len(set(seen)) == 1 and told in (None, *seen):
            return
        if self._in_doubt:
            left = self._take_back(database)
            self._in_doubt = False
        raise LockUnsafeError(
            f"lock {self._name!r} would not be kept: something between us and the server shares connections "
            f"({granted}first on {seen[0]}, now on {seen[1]}, logged in as {told}); connect to the server itself, or "
            f"say allow_unsafe=True{left}"
        )

    def _take_back(self, database: Database) -> str:
        """Free a lock that was granted through a pooler; what to add to the message.

        A pooler keeps its sessions, so a lock that stays on one would keep everybody out until it is restarted.
        """
        session = self._granted_to
        try:
            if any(self._free(database) for _ in range(_RELEASE_TRIES)):
                return ""
            ((holder,),) = database.query("SELECT IS_USED_LOCK(:name)", name=self._name)
            if holder is not None and holder == session:  # not somebody else, on a server that did not grant it to us
                database.run(f"KILL {int(holder)}")
                return f"; connection {holder} was killed, because nothing else would free the lock"
        except DatabaseError as error:
            return f"; connection {session} may still have it, so KILL {session} on the server: {error}"
        return f"; connection {session} of a server that does not answer now may still have it"

    def _name_on(self, server: Server) -> str:
        if self._literal:
            return server.checked(self._asked)
        if server.schema is None:
            raise LockError(
                f"lock {self._asked!r} is scoped to a schema and the connection has none: name a database in the URL, "
                "or say literal=True"
            )
        return server.scoped(self._asked)


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"a timeout is 0 or more seconds, or None to wait for ever, not {timeout!r}")


_locks: weakref.WeakValueDictionary[int, NamedLock] = weakref.WeakValueDictionary()


def _after_fork_in_child() -> None:
    # `valuerefs` copies in one step: another thread of the parent may have been making a lock.
    for lock in [lock for ref in _locks.valuerefs() if (lock := ref()) is not None]:
        lock._inherited += lock._depth if lock._owner == threading.get_ident() else 0
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
