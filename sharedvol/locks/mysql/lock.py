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
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sharedvol import forks
from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, LockError, LockLostError, LockUnsafeError
from sharedvol.locks.mysql import token_table
from sharedvol.locks.mysql.get_lock import NamedLockRequest, Waiting
from sharedvol.locks.mysql.pooler import refuse_pooler
from sharedvol.locks.mysql.server import LockHolder, Server, inspect
from sharedvol.locks.server_lock import ServerLock

if TYPE_CHECKING:
    from sharedvol.database.connection import Target

__all__ = ["LockHolder", "NamedLock", "Waiting"]


class NamedLock(ServerLock):
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
        fenced: have a `token`, and tell others who holds: in the table ``sharedvol_lock`` of the connection's schema,
            made where it is missing. All who lock the name with tokens must use one schema.
        purpose: what the holder tells others that it is for; at most 200 characters. Told where ``fenced``.

    Raises:
        ValueError: ``name`` is empty, ``purpose`` too long, or ``timeout`` negative or not a number.
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
        fenced: bool = False,
        purpose: str = "",
    ) -> None:
        self._target, self._literal, self._allow_unsafe, self._on_wait = target, literal, allow_unsafe, on_wait
        self._made_in = os.getpid()
        self._server: Server | None = None
        super().__init__(name, timeout, fenced, purpose)

    def _reset(self) -> None:
        self._database: Database | None = None
        self._claim: NamedLockRequest | None = None

    @property
    def server(self) -> Server | None:
        """What the lock's connection leads to; None before the first acquire."""
        return self._server

    def check(self) -> None:
        """Ask the server whether the lock is still ours, from any thread. One round trip.

        On a connection that is the caller's too, another thread than the holder asks on a new connection.

        Raises:
            LockLostError: it is not: the connection is gone, or somebody freed the lock on it; or nobody can tell.
            NotLockedError: it was never acquired, or has been released.
        """
        forks.notice()
        with self._talk:
            database, claim = self._speaking()
            if database is None or claim is None:
                raise self._not_held()
            try:
                with self._voice(database) as voice:
                    kept = claim.is_kept(voice)
            except DatabaseError as error:
                raise LockLostError(f"lock {self._name!r} is lost with its connection: {error}") from error
        if not kept:
            raise LockLostError(f"lock {self._name!r} is lost: something on its own connection released it")

    def holder(self) -> LockHolder | None:
        """Who has the lock now, this one included; None if nobody has. Connects if it must.

        Raises:
            LockError, DatabaseError: as `acquire`.
        """
        forks.notice()
        with self._talk:
            ours, claim = self._speaking()
            if ours is not None and claim is not None:
                with self._voice(ours) as voice:
                    return token_table.find_holder(voice, claim.server, claim.name)
        database = self._open()
        try:
            server = inspect(database)
            return token_table.find_holder(database, server, self._name_on(server))
        finally:
            if database is not self._target:
                database.close()

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
        name = self._name = self._name_on(server)
        if server.cluster and not self._allow_unsafe:
            raise LockUnsafeError(
                f"lock {name!r} would not exclude others: {server.cluster}, whose nodes do not share "
                "locks; let all replicas use one node and say allow_unsafe=True, or use another lock"
            )
        claim = self._claim = NamedLockRequest(database, server, name)
        if not self._allow_unsafe:
            refuse_pooler(claim, server.session)
        claim.wait(begun, limit, self._on_wait)
        if not self._allow_unsafe:
            ((holder, now),) = database.query("SELECT IS_USED_LOCK(:name), CONNECTION_ID() + 0", name=name)
            refuse_pooler(claim, server.session, now, holder)
        if self._fenced:
            self._token = self._draw(database, claim)

    def _draw(self, database: Database, claim: NamedLockRequest) -> int:
        assert claim.session is not None
        # Not within a transaction of the caller's, whose rollback would take the token back.
        own = database if database.owned else database.another()
        try:
            return token_table.draw(own, claim.server, claim.name, claim.session, self._purpose)
        finally:
            if own is not database:
                own.close()

    def _end(self) -> None:
        with self._talk:
            _, claim = self._speaking()
            assert claim is not None
            try:
                freed = claim.free()
            except DatabaseError as error:
                raise LockLostError(f"lock {self._name!r} was lost with its connection: {error}") from error
            claim.in_doubt = False
            self._freed()
        if not freed:
            raise LockLostError(f"lock {self._name!r} was lost: something on its own connection released it")

    def _let_go(self) -> None:
        database, self._database = self._database, None
        claim, self._claim = self._claim, None
        if database is None:
            return
        if claim is not None and claim.in_doubt and self._is_shared(database):
            with contextlib.suppress(DatabaseError):  # gone, and the lock with it
                claim.free()
        if database is not self._target:
            database.close()

    def _is_shared(self, database: Database) -> bool:
        """Whether the caller uses the connection, too, and goes on after the release."""
        return database is self._target or not database.owned

    def _speaking(self) -> tuple[Database | None, NamedLockRequest | None]:
        """The connection of a lock that is held. Under `_talk`: a driver would mix up the answers for two threads."""
        return (self._database, self._claim) if self.held else (None, None)

    @contextlib.contextmanager
    def _voice(self, database: Database) -> Iterator[Database]:
        """A connection to ask on beside the lock's: the very one, unless its owner may be speaking on it now."""
        if not self._is_shared(database) or self._is_holder():
            yield database
            return
        other = database.another()
        try:
            yield other
        finally:
            other.close()

    def _name_on(self, server: Server) -> str:
        if self._literal:
            return server.checked(self._asked)
        if server.schema is None:
            raise LockError(
                f"lock {self._asked!r} is scoped to a schema and the connection has none: name a database in the URL, "
                "or say literal=True"
            )
        return server.scoped(self._asked)
