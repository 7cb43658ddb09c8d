"""What a lock needs of a Redis server: a client, its errors as ours, the token, what the holder says of itself."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from sharedvol.errors import DatabaseError, IdentityError, LockError
from sharedvol.identity import container_id, worker_token
from sharedvol.locks.holder import Holder, described

if TYPE_CHECKING:
    from redis import Redis

_NETWORK_SECONDS: Final = 10.0
NEEDED: Final = (
    "+subscribe +unsubscribe +publish +pubsub|numsub +client +info +ping "
    "+eval +time +incr +set +del +hset +hgetall"  # of fenced locks
)
"""The commands that an account must be allowed, as ``ACL SETUSER`` takes them."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Draws a token and writes the holder down: KEYS are portalocker's key of tokens and ours of the holder, ARGV fields
# and values. One script, so that nothing comes in between; in microseconds, which Lua's doubles hold exactly.
DRAW: Final = """
local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local token = redis.call('INCR', KEYS[1])
if token < clock then
    token = clock
    redis.call('SET', KEYS[1], string.format('%.0f', token))
end
local text = string.format('%.0f', token)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'token', text, 'since', string.format('%.0f', clock), unpack(ARGV))
return text
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisHolder(Holder):
    """Who has a lock on a Redis server. What is common to all engines is known of a holder with ``fenced=True``.

    Attributes:
        holder_id: portalocker's name for this hold.
        address: where its connection comes from, as ``CLIENT LIST`` tells it.
    """

    holder_id: str
    address: str | None = None

    def __str__(self) -> str:
        who = f"the connection from {self.address}" if self.address else f"holder {self.holder_id}"
        return described(who, self)


def connect(url: str) -> Redis:
    """A client, which connects when it is first asked something.

    Raises:
        DatabaseError: the packages for it are missing.
        ValueError: ``url`` is no such URL.
    """
    try:
        importlib.import_module("portalocker.redis")
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"{error.name} is not installed, which locks on Redis need: install sharedvol[redis]"
        ) from error
    try:
        _check(urlsplit(url))
        made: Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            health_check_interval=10,
            socket_timeout=_NETWORK_SECONDS,
            socket_connect_timeout=_NETWORK_SECONDS,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        )
        made.connection_pool.make_connection()  # which connects nowhere yet, but looks at all options
    except (ValueError, TypeError):
        # Neither its text nor a traceback may repeat the URL, password and all.
        raise ValueError(
            "not a Redis URL: it should look like redis://user@host:6379/0, rediss://… or unix:///socket, "
            "with what is special in the password written as %23 and so on"
        ) from None
    return made


def _check(url: SplitResult) -> None:
    """Refuse what redis-py would take for something else in silence."""
    if url.scheme == "unix":
        if url.netloc.rpartition("@")[2] or not url.path.strip("/"):
            raise ValueError("no absolute path")
    elif url.path.strip("/") and not url.path.strip("/").isdecimal():
        raise ValueError("no number of a database")


def label(client: Redis) -> str:
    """What to call the server in a message: without user and password."""
    said: dict[str, Any] = client.get_connection_kwargs()
    where = said.get("path") or f"{said.get('host', 'localhost')}:{said.get('port', 6379)}"
    return f"Redis at {where}, database {said.get('db', 0)}"


def ourselves(holder_id: str, purpose: str) -> list[str | bytes]:
    """What this process says of itself: fields and values, as `DRAW` writes them down."""
    replica = ""
    with contextlib.suppress(IdentityError):  # then the holder has no name, and the lock works all the same
        replica = container_id()
    said = {"holder": holder_id, "replica": replica, "pid": str(os.getpid()), "worker": worker_token()}
    return [*(text for pair in said.items() for text in pair), "purpose", purpose.encode(errors="replace")]


def as_holder(said: dict[str, str], address: str | None) -> RedisHolder:
    """The same, read. Anybody may have written it."""
    token, since, pid = (_number(said.get(key)) for key in ("token", "since", "pid"))
    return RedisHolder(
        holder_id=said["holder"],
        address=address,
        replica=said.get("replica") or None,
        pid=pid,
        worker=said.get("worker"),
        purpose=said.get("purpose", ""),
        since=None if since is None else _EPOCH + timedelta(microseconds=since),
        token=token,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 17 else None


@contextlib.contextmanager
def told(client: Redis, name: str) -> Iterator[None]:
    """Errors of the server and the network as ours."""
    import redis

    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        words = str(error).rpartition("of pipeline caused error: ")[2]  # before that stands our script
        # The second is what a script is told.
        if isinstance(error, redis.exceptions.NoPermissionError) or "can't run this command" in words:
            raise LockError(
                f"lock {name!r}: the account may not use {label(client)} for locks: allow it {NEEDED} ({words})"
            ) from error
        gone = isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError)
        raise DatabaseError(f"{label(client)}: {words}", lost=gone) from error
