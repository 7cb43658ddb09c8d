"""What a MySQL or MariaDB server is, as far as its named locks go: its flavour, its limits, who holds a lock."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, LockError
from sharedvol.locks.holder import Holder, described

_MAX_CHARACTERS: Final = 64
_MAX_BYTES: Final = {"mysql": _MAX_CHARACTERS * 4, "mariadb": 192}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder(Holder):
    """Who has a lock on the server. What is common to all engines is known of a holder with ``fenced=True``.

    Attributes:
        connection_id: the server's number of the session, as ``KILL`` takes it.
        user: the account's name; None where this account may not see others (it lacks PROCESS).
        host: where the session came from, with its port.
        seconds: how long the session has been doing what it does now.
        doing: the statement, or ``Sleep`` between two.
    """

    connection_id: int
    user: str | None = None
    host: str | None = None
    seconds: int | None = None
    doing: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the statement, which may hold secrets."""
        return {key: value for key, value in Holder.as_dict(self).items() if key != "doing"}

    def __str__(self) -> str:
        who = f"connection {self.connection_id}"
        if self.user is not None:
            who += f" ({self.user} from {self.host}"
            word = re.match(
                "[A-Za-z]+", self.doing or ""
            )  # no more: what follows may be a value, or control characters
            who += f", {word.group().upper()} for {self.seconds} s)" if word else ")"
        return described(who, self)


@dataclass(frozen=True)
class Server:
    """What a lock needs to know of a server.

    Attributes:
        flavour: ``mysql`` or ``mariadb``.
        version: as the server tells it.
        schema: the session's default database.
        session: the connection's number.
        cluster: what makes the lock local to one node, in words; None on a server of its own.
        backslash_escapes: whether a backslash escapes in strings.
    """

    flavour: str
    version: str
    schema: str | None
    session: int
    cluster: str | None
    backslash_escapes: bool

    def checked(self, name: str) -> str:
        """``name`` if this server takes it.

        Raises:
            LockError: it is too long, or has characters that MySQL does not take.
        """
        if self.flavour == "mysql" and any(character > "\uffff" for character in name):
            raise LockError(f"lock name {name!r} has characters beyond U+FFFF, which {self.version} takes in no name")
        if not self._fits(name):
            limit = "192 bytes" if self.flavour == "mariadb" else f"{_MAX_CHARACTERS} characters"
            raise LockError(f"lock name {name!r} is longer than the {limit} that {self.version} takes: shorten it")
        return name

    def scoped(self, name: str) -> str:
        """``name`` within the schema: the same on both flavours, at most 64 characters, all of ASCII.

        MariaDB compares the bytes of whatever character set a client speaks; MySQL takes no emoji.
        """
        full = f"{self.schema}.{name}".lower()
        if len(full) <= _MAX_CHARACTERS and full.isascii():
            return full
        digest = hashlib.sha256(full.encode()).hexdigest()[:16]
        return f"{full[:40].encode('ascii', 'replace').decode()}~{digest}"

    def _fits(self, name: str) -> bool:
        if self.flavour == "mysql" and len(name) > _MAX_CHARACTERS:
            return False
        return len(name.encode()) <= _MAX_BYTES[self.flavour]


def inspect(database: Database) -> Server:
    """Ask a server what it is. Two round trips.

    Raises:
        LockError: it is neither MySQL nor MariaDB.
        DatabaseError: it does not answer.
    """
    if database.kind != "mysql":
        raise LockError(f"{database.label} has no named locks: use FileLock there")
    ((version, schema, session, mode),) = database.query(
        "SELECT VERSION(), DATABASE(), CONNECTION_ID(), @@SESSION.sql_mode"
    )
    rows = database.query(
        "SHOW GLOBAL VARIABLES WHERE Variable_name IN "
        "('wsrep_on', 'wsrep_cluster_name', 'group_replication_group_name', 'version_comment')"
    )
    known = {str(name).lower(): str(value) for name, value in rows}
    cluster = None
    if known.get("wsrep_on", "OFF").upper() in ("ON", "1"):
        cluster = f"the server is a node of the Galera cluster {known.get('wsrep_cluster_name', '')!r}"
    elif known.get("group_replication_group_name"):
        cluster = f"the server is a member of the replication group {known['group_replication_group_name']!r}"
    database.home = database.home or text_of(schema)  # the first answer: later a migration may have said USE
    mariadb = "mariadb" in f"{version} {known.get('version_comment', '')}".lower()
    return Server(
        flavour="mariadb" if mariadb else "mysql",
        version=str(version),
        schema=text_of(schema),
        session=int(session),
        cluster=cluster,
        backslash_escapes="NO_BACKSLASH_ESCAPES" not in str(text_of(mode)),
    )


def find_session(database: Database, name: str) -> LockHolder | None:
    """The session that has the lock ``name`` on the server, and what it does; None if it is free."""
    with contextlib.suppress(DatabaseError):  # who may not look still learns the number, below
        rows = database.query(
            "SELECT ID, USER, HOST, TIME, COALESCE(INFO, COMMAND) FROM information_schema.PROCESSLIST "
            "WHERE ID = IS_USED_LOCK(:name)",
            name=name,
        )
        for holder, user, host, seconds, doing in rows:
            return LockHolder(
                connection_id=int(holder),
                user=text_of(user),
                host=text_of(host),
                seconds=int(seconds or 0),
                doing=text_of(doing),
            )
    ((holder,),) = database.query("SELECT IS_USED_LOCK(:name)", name=name)
    return None if holder is None else LockHolder(connection_id=int(holder))


def text_of(value: object) -> str | None:
    """A value of the server as text, whatever the driver makes of it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)
