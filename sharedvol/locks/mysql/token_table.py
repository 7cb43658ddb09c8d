"""The fencing tokens of named locks, and what their holders say of themselves: a table of ours on the server.

A token is the last one plus one, and never below the server's clock in microseconds: so it grows also where the
table was dropped, a backup was restored, or a power cut took the last second's commits (a server with
``innodb_flush_log_at_trx_commit`` other than 1 writes them down later), as long as that clock is not set back.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from sharedvol.database.connection import Database, quoted
from sharedvol.errors import DatabaseError, IdentityError, LockError, LockLostError
from sharedvol.identity import container_id, worker_token
from sharedvol.locks.mysql.server import LockHolder, Server, find_session, text_of

TABLE: Final = "sharedvol_lock"

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS {table} ("
    "name VARBINARY(256) NOT NULL PRIMARY KEY, token BIGINT UNSIGNED NOT NULL, connection_id BIGINT UNSIGNED NOT NULL, "
    "replica VARCHAR(64) CHARACTER SET utf8mb4, pid BIGINT UNSIGNED, worker VARCHAR(32) CHARACTER SET utf8mb4, "
    "purpose VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, since DATETIME(6) NOT NULL"
    ") ENGINE=InnoDB"
)
# MySQL compares the names of locks in lower case, by the rules of its own Unicode 3; MariaDB compares their bytes.
_KEY: Final = {
    "mysql": "CAST(LOWER(CONVERT(:name USING utf8mb3)) AS BINARY)",
    "mariadb": "CAST(:name AS BINARY)",
}
_NOW: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
_PURPOSE: Final = "CONVERT(UNHEX(:purpose) USING utf8mb4)"  # whatever character set the connection speaks
_DRAW: Final = (
    "INSERT INTO {table} (name, token, connection_id, replica, pid, worker, purpose, since) "
    f"SELECT {{key}}, {_NOW}, :session, :replica, :pid, :worker, {_PURPOSE}, UTC_TIMESTAMP(6) "
    "FROM DUAL WHERE IS_USED_LOCK(:name) = :session "
    f"ON DUPLICATE KEY UPDATE token = GREATEST(token + 1, {_NOW}), connection_id = :session, replica = :replica, "
    f"pid = :pid, worker = :worker, purpose = {_PURPOSE}, since = UTC_TIMESTAMP(6)"
)
_MISSING: Final = 1146  # ER_NO_SUCH_TABLE
_DENIED: Final = (1044, 1142, 1143, 1227)  # ER_DBACCESS_DENIED_ERROR, ER_TABLEACCESS_DENIED_ERROR, of columns, SUPER
_READ_ONLY: Final = (1290, 1792, 1836)  # ER_OPTION_PREVENTS_STATEMENT, of a transaction, ER_READ_ONLY_MODE


def draw(database: Database, server: Server, name: str, session: int, purpose: str) -> int:
    """The next token of the lock, which ``session`` holds, and write down who we are.

    Args:
        database: a connection in autocommit mode: a rollback must not take a token back.

    Raises:
        LockLostError: the session has the lock no more.
        LockError: the table cannot be written, and what to do.
        DatabaseError: the server cannot be reached, or refused in another way.
    """
    if server.schema is None:
        raise LockError(
            f"lock {name!r} cannot be fenced: its tokens need a schema, and the connection has none: "
            "name a database in the URL"
        )
    table, key = _table(server.schema), _KEY[server.flavour]
    try:
        _write(database, _DRAW.format(table=table, key=key), table, **_ourselves(purpose), name=name, session=session)
        rows = database.query(
            f"SELECT token, IS_USED_LOCK(:name) = :session FROM {table} "
            f"WHERE name = {key} AND connection_id = :session",
            name=name,
            session=session,
        )
    except DatabaseError as error:
        refusal = _refused(error, name, table)
        if refusal is None:
            raise
        raise refusal from error
    # Asked after the token was drawn: so at that moment nobody else had the lock, or a later token.
    if not rows or not rows[0][1]:
        raise LockLostError(f"lock {name!r} was lost before it had its token: connection {session} has it no more")
    return int(rows[0][0])


def find_holder(database: Database, server: Server, name: str) -> LockHolder | None:
    """Who has the lock ``name`` on the server, what the session does, what it said of itself; None if it is free."""
    found = find_session(database, name)
    return None if found is None else replace(found, **_told(database, server, name, found.connection_id))


def _told(database: Database, server: Server, name: str, session: int) -> dict[str, Any]:
    """What the session that holds the lock wrote of itself; empty if nothing.

    A row of an earlier life of the server, whose connections were numbered alike, is not believed.
    """
    if server.schema is None:
        return {}
    own = database
    try:
        own = database if database.owned else database.another()  # no snapshot within a caller's transaction
        rows = own.query(
            "SELECT token, replica, pid, worker, CAST(purpose AS BINARY), since, "
            "TIMESTAMPDIFF(MICROSECOND, since, UTC_TIMESTAMP(6)) / 1000000 "
            f"FROM {_table(server.schema)} WHERE name = {_KEY[server.flavour]} AND connection_id = :session",
            name=name,
            session=session,
        )
        if not rows:
            return {}
        ((_, uptime),) = own.query("SHOW GLOBAL STATUS LIKE 'Uptime'")
    except DatabaseError:  # no such table, or not for us: then there is no more to say
        return {}
    finally:
        if own is not database:
            own.close()
    ((token, replica, pid, worker, purpose, since, age),) = rows
    if age > int(uptime) - 1:  # whole seconds, of which the first and the last may be broken
        return {}
    return {
        "token": int(token),
        "replica": text_of(replica),
        "pid": None if pid is None else int(pid),
        "worker": text_of(worker),
        "purpose": text_of(purpose) or "",
        "since": since.replace(tzinfo=UTC) if isinstance(since, datetime) else None,
    }


def _ourselves(purpose: str) -> dict[str, Any]:
    replica = None
    with contextlib.suppress(IdentityError):  # then the holder has no name, and the lock works all the same
        replica = container_id()
    said = purpose.encode(errors="replace").hex()
    return {"replica": replica, "pid": os.getpid(), "worker": worker_token(), "purpose": said}


def _write(database: Database, statement: str, table: str, **values: Any) -> None:
    try:
        database.change(statement, **values)
    except DatabaseError as error:
        if error.code != _MISSING:
            raise
        database.change(_CREATE.format(table=table))
        database.change(statement, **values)


def _table(schema: str) -> str:
    return f"{quoted(schema)}.{TABLE}"  # in full: a migration may have said USE


def _refused(error: DatabaseError, name: str, table: str) -> LockError | None:
    if error.code in _READ_ONLY:
        what = "the server only reads, as a replica of another does: connect to the one that writes"
    elif error.code in _DENIED:
        what = (
            f"the account may not write to {table}: grant it SELECT, INSERT and UPDATE there, and CREATE if it is "
            f"missing, or make it once as somebody who may: {_CREATE.format(table=table)}"
        )
    else:
        return None
    return LockError(f"lock {name!r} cannot be fenced, {what}; or do without fenced=True ({error})")
