"""Errors of a catalog's database, in words with what to do about them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from sharedvol import LockError
from sharedvol.database import url as database_url
from sharedvol.errors import describe, remedy
from sharedvol_sidecar.errors import FULL, CatalogError, errno_of

HELD: Final = "another process holds it: look for one that hangs"

_NEEDED_INODES: Final = 8
_NEEDED: Final = 1 << 20
"""Bytes without which a disk is full for SQLite. Some file systems keep the last blocks for themselves."""

_DAMAGED: Final = "the file is damaged: stop the sidecars, move {path}* away, and run `rebuild`"
_FORBIDDEN: Final = "make it and its directory writable for the sidecar's user"
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: "free some space; the sidecar records it again later",
    sqlite3.SQLITE_BUSY: HELD,
    sqlite3.SQLITE_LOCKED: HELD,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and that the sidecar's user can write there",
    sqlite3.SQLITE_IOERR: "check that its disk works and has space",
}


def driver_error(dialect: Any, error: BaseException) -> BaseException | None:
    """Return the error of the database's driver; None if the error is of another kind."""
    if isinstance(error, sa.exc.DBAPIError):
        return error.orig
    return error if isinstance(error, dialect.loaded_dbapi.Error) else None


def sqlite_code(error: BaseException) -> int:
    """Return SQLite's primary result code; 0 if the error is not one of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def explain(error: BaseException, begin: str, url: sa.URL, path: Path | None, dialect: Any) -> CatalogError | None:
    """Return a `CatalogError` for an error of a catalog's database; None for an error of another kind.

    Args:
        error: what was raised.
        begin: how the message begins: ``cannot read catalog …: ``.
        url: of the catalog; its secrets are removed from the message.
        path: the catalog's file; None if it is on a server.
        dialect: of SQLAlchemy.
    """
    text = _words(error, url, path, dialect)
    if text is None:
        return None
    explained = CatalogError(begin + text)
    explained.full = path is not None and _is_full(path, error)
    return explained


def _words(error: BaseException, url: sa.URL, path: Path | None, dialect: Any) -> str | None:
    if isinstance(error, LockError):
        return str(error)
    if isinstance(error, OSError):
        if path is None:
            return f"{database_url.redact(str(error), url)}; check that the server runs"
        return f"{describe(error)}; {remedy(error, default='check that its directory can be written')}"
    driver = driver_error(dialect, error)
    if driver is None:
        known = isinstance(error, sa.exc.SQLAlchemyError | RuntimeError)
        return database_url.redact(str(error), url) if known else None
    if path is None:
        words = ", ".join(str(part) for part in driver.args[1:]) or str(driver) or "the connection is closed"
        code = f" (error {driver.args[0]})" if driver.args and isinstance(driver.args[0], int) else ""
        hint = "check that the server runs and that the account may write there"
        return f"{database_url.redact(words, url)}{code}; {hint}"
    hint = _SQLITE.get(sqlite_code(driver), "try again; if that does not help, move {path}* away and run `rebuild`")
    return f"{driver}; {hint.format(path=path)}"


def _is_full(path: Path, error: BaseException) -> bool:
    """Return whether a catalog failed because its disk is full. SQLite often reports another error."""
    if errno_of(error) in FULL:
        return True
    code = sqlite_code(getattr(error, "orig", error))
    if code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        free = os.statvfs(path.parent)
    except OSError:
        return False
    without_inodes = free.f_files > 0 and free.f_favail < _NEEDED_INODES
    return code == sqlite3.SQLITE_FULL or without_inodes or free.f_bavail * free.f_frsize < _NEEDED
