"""A lock that a Redis server keeps: portalocker's, with the manners of our others.

portalocker holds the lock by a subscription to a channel, so Redis frees it when the connection ends: no lease to
run out or to renew. What that means for who uses it:

- One standalone server. The nodes of a cluster, and a replica beside its primary, count their own subscribers only.
- Who waits asks all subscribers of the channel, and has Redis end the connections of those that do not answer in
  time. So a holder that is stopped, or whose interpreter is busy in one C call, for longer than that can lose it.
- Who waits asks again and again, at random times: there is no queue.

The fencing token is drawn here and not by portalocker, on the same key: its ``INCR`` begins at 1 again when the
key is gone, or at an old value after a restart from an old snapshot. Ours is never below the server's clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from sharedvol import forks
from sharedvol.errors import DatabaseError, LockError, LockLostError, LockTimeout, LockUnsafeError
from sharedvol.locks.redis.server import DRAW, RedisHolder, as_holder, connect, ourselves, told
from sharedvol.locks.server_lock import ServerLock

if TYPE_CHECKING:
    import portalocker.redis
    from redis import Redis

ANSWER_SECONDS: Final = 5.0
"""How long who waits gives the others on the channel to answer before it has Redis end their connections."""

_SLICE_SECONDS: Final = 60.0  # after which who waits for ever looks whether there is a server at all
_CHECK_SECONDS: Final = 0.1  # between two tries
_POLL_SECONDS: Final = 0.02  # between two looks at the channel
_NAMES: Final = frozenset(map(chr, range(ord("!"), ord("~") + 1)))  # of clients: CLIENT SETNAME


class RedisLock(ServerLock):
    """An exclusive lock kept by a Redis (or Valkey) server, version 6.2 or newer.

    ::

        with RedisLock("redis://cache/0", "nightly-report", timeout=60):
            ...

    Holds connections of its own from acquire to release, and a thread that answers those who wait. Re-entrant for
    the thread that holds it; other threads that use the same object wait. A forked child has it no more.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with the options of redis-py.
        name: what to lock, on the whole server: channels know no databases.
        timeout: seconds to wait; None waits for ever, 0 not at all.
        literal: use ``name`` as the channel as it is: to share a lock with others who use portalocker.
        allow_unsafe: also lock on a node of a cluster or on a replica, where the lock may exclude nobody.
        fenced: have a `token`, and tell others who holds: in two keys beside the lock, which stay.
        purpose: what the holder tells others that it is for; at most 200 characters. Told where ``fenced``.

    Raises:
        ValueError: ``url`` is none, ``name`` is empty or no channel, ``purpose`` too long, or ``timeout`` no number
            of seconds.
        DatabaseError: the packages for it are missing.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float | None = None,
        literal: bool = False,
        allow_unsafe: bool = False,
        fenced: bool = False,
        purpose: str = "",
    ) -> None:
        if literal and not _NAMES.issuperset(name):
            raise ValueError(f"lock name {name!r}: Redis takes only visible ASCII characters; or say literal=False")
        self._url, self._allow_unsafe = url, allow_unsafe
        self._channel = name if literal else "sharedvol:" + quote(name, safe="/:@+,=", errors="surrogatepass")
        connect(url).close()  # which connects nowhere yet
        super().__init__(name, timeout, fenced, purpose)
        self._name = self._channel

    def _reset(self) -> None:
        # Dropped later: portalocker's locks would talk, and its own hooks have perhaps not run yet in this child.
        self._ghost: object = getattr(self, "_lock", None), getattr(self, "_client", None)
        subscription = getattr(self._ghost[0], "pubsub", None)
        if subscription is not None:
            # The socket is the lock. A thread that this child has no more refers to it, so it would stay open,
            # and the lock with it, for as long as the child lives.
            with contextlib.suppress(Exception):
                subscription.connection.disconnect()
        self._lock: portalocker.redis.RedisLock | None = None
        self._client: Redis | None = None
        self._connection_id = 0

    def check(self) -> None:
        """Ask the server whether the lock is still ours, from any thread. One round trip.

        Raises:
            LockLostError: it is not, or the server cannot be asked.
            NotLockedError: it was never acquired, or has been released.
        """
        forks.notice()
        with self._talk:
            lock, client = self._lock, self._client
            if not self.held or lock is None or client is None:
                raise self._not_held()
            self._check(lock, client)

    def _check(self, lock: portalocker.redis.RedisLock, client: Redis) -> None:
        import portalocker.exceptions

        try:
            lock.ensure_held()
            with told(client, self._channel):
                mine = client.client_list(client_id=[str(self._connection_id)])
        except portalocker.exceptions.LockLostError as error:
            raise LockLostError(f"lock {self._name!r} is lost with its connection: {error.__cause__}") from error
        except DatabaseError as error:
            raise LockLostError(f"lock {self._name!r} is lost, or nobody can tell: {error}") from error
        if not any(each.get("name") == lock.client_name and each.get("sub") != "0" for each in mine):
            raise LockLostError(
                f"lock {self._name!r} is lost: the server ended its connection, as one that did not answer in "
                f"{ANSWER_SECONDS:g} s, or on somebody's order"
            )

    def holder(self) -> RedisHolder | None:
        """Who has the lock now, this one included; None if nobody has. Connects if it must.

        Raises:
            LockError: those who use the lock do not answer.
            DatabaseError: the server cannot be reached or refused.
        """
        with self._connected() as client:
            return self._find_holder(client)

    def _begin(self, begun: float, limit: float | None) -> None:
        client = self._client = connect(self._url)
        import portalocker.redis

        with told(client, self._channel), client.pipeline(transaction=False) as asked:
            asked.info("server")
            asked.info("replication")
            server, replication = asked.execute()
        self._refuse_unsafe(server.get("redis_mode"), replication.get("role"))
        lock = self._lock = self._made(portalocker.redis, client)
        self._wait(lock, client, begun, limit)
        self._take_note(lock, client)

    def _made(self, module: Any, client: Redis) -> portalocker.redis.RedisLock:
        made: portalocker.redis.RedisLock = module.RedisLock(
            self._channel,
            connection=client,
            check_interval=_CHECK_SECONDS,
            thread_sleep_time=_POLL_SECONDS,
            unavailable_timeout=ANSWER_SECONDS,
            interrupt_on_lost=False,
        )
        return made

    def _wait(self, lock: portalocker.redis.RedisLock, client: Redis, begun: float, limit: float | None) -> None:
        import portalocker.exceptions

        while True:
            left = _SLICE_SECONDS if limit is None else limit - (time.monotonic() - begun)
            try:
                with told(client, self._channel):
                    # Without time to wait, portalocker still needs some to be sure of what it sees.
                    lock.acquire(
                        timeout=min(left, _SLICE_SECONDS) if left > 0 else ANSWER_SECONDS, fail_when_locked=left <= 0
                    )
                return
            except portalocker.exceptions.AlreadyLocked:
                with told(client, self._channel):
                    client.ping()  # portalocker takes a server that is away for one that is busy
            except portalocker.exceptions.LockException as error:
                raise LockError(f"lock {self._name!r}: portalocker cannot use this connection: {error}") from error
            if limit is not None and time.monotonic() - begun >= limit:
                holder = None
                with contextlib.suppress(LockError, DatabaseError):
                    holder = self._find_holder(client)
                raise LockTimeout(self._channel, limit, holder)

    def _take_note(self, lock: portalocker.redis.RedisLock, client: Redis) -> None:
        """Learn which connection is the lock, and draw the token."""
        with told(client, self._channel), client.pipeline(transaction=False) as asked:
            if self._fenced:
                asked.eval(DRAW, 2, lock.fence_key, self._holder_key, *ourselves(lock.holder_id, self._purpose))
            # After the token was drawn: so at that moment nobody else had the lock, or a later token.
            asked.client_list(_type="pubsub")
            *drawn, clients = asked.execute()
        mine = [int(each["id"]) for each in clients if each.get("name") == lock.client_name]
        if not mine:
            raise LockLostError(f"lock {self._name!r} was lost at once: the server has its connection no more")
        self._connection_id = mine[0]
        self._token = int(drawn[0]) if drawn else None

    def _end(self) -> None:
        with self._talk:
            lock, client = self._lock, self._client
            assert lock is not None and client is not None
            try:
                self._check(lock, client)
            finally:
                self._freed()
                with contextlib.suppress(Exception):  # of a connection that is gone, and the lock with it
                    lock.release()

    def _let_go(self) -> None:
        lock, self._lock = self._lock, None
        client, self._client = self._client, None
        with contextlib.suppress(Exception):  # as above
            if lock is not None:
                lock.release()
        with contextlib.suppress(Exception):
            if client is not None:
                client.close()

    @property
    def _holder_key(self) -> str:
        return f"{self._channel}-holder"

    def _find_holder(self, client: Redis) -> RedisHolder | None:
        with told(client, self._channel), client.pipeline(transaction=False) as asked:
            asked.hgetall(self._holder_key)
            asked.client_list(_type="pubsub")
            said, clients = asked.execute()
        prefix = f"{self._channel}-lock-"
        addresses = {
            each["name"].removeprefix(prefix): each.get("addr")
            for each in clients
            if each.get("name", "").startswith(prefix) and each.get("sub") != "0"
        }
        # Each hold has an id of its own: while its connection lives, the lock is its.
        if said.get("holder") in addresses:
            return as_holder(said, addresses[said["holder"]])
        if not addresses:
            return None
        return self._ask_around(client, addresses)

    def _ask_around(self, client: Redis, addresses: dict[str, str | None]) -> RedisHolder | None:
        """Of a holder that wrote nothing: those who only wait are on the channel, too."""
        import portalocker.exceptions
        import portalocker.redis

        try:
            with told(client, self._channel):
                found = self._made(portalocker.redis, client).probe()
        except portalocker.exceptions.LockException as error:
            raise LockError(f"lock {self._name!r}: those who use it do not answer, or change all the time") from error
        for each in found:
            if each.mode is not portalocker.redis.RedisLockMode.PENDING:
                return RedisHolder(holder_id=each.holder_id, address=addresses.get(each.holder_id))
        return None

    def _refuse_unsafe(self, mode: str | None, role: str | None) -> None:
        if self._allow_unsafe:
            return
        if mode not in ("standalone", None):
            what = f"the server is a {mode}, whose nodes do not share locks"
        elif role not in ("master", None):
            what = "the server is a replica, which does not share locks with its primary"
        else:
            return
        raise LockUnsafeError(
            f"lock {self._name!r} would not exclude others: {what}; let all use one standalone server and say "
            "allow_unsafe=True if this is it, or use another lock"
        )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Redis]:
        client = connect(self._url)
        try:
            yield client
        finally:
            with contextlib.suppress(Exception):
                client.close()
