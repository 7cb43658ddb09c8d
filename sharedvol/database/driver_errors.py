"""Raise the errors of a database driver as `DatabaseError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sharedvol.database.url import redact
from sharedvol.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect


@contextlib.contextmanager
def translated(dialect: Dialect, raw: Any, what: str, url: URL | None = None) -> Iterator[None]:
    """Raise the driver's errors in the block as `DatabaseError`.

    Args:
        dialect: the dialect of the connection.
        raw: the driver's connection; None if there is none yet.
        what: the beginning of the message.
        url: the URL whose secrets the driver may repeat, to remove them.

    Raises:
        DatabaseError: the driver raised an error.
    """
    driver_error = dialect.loaded_dbapi.Error
    try:
        yield
    except driver_error as error:
        raise _database_error(dialect, raw, what, error, url) from error
    except (OSError, RuntimeError) as error:  # PyMySQL: the socket, or a package that the log-in needs
        words = str(error) if url is None else redact(str(error), url)
        raise DatabaseError(f"{what}: {words}", lost=True) from error


def _database_error(
    dialect: Dialect, raw: Any, what: str, error: BaseException | None, url: URL | None
) -> DatabaseError:
    code = error.args[0] if error is not None and error.args and isinstance(error.args[0], int) else None
    words = str(error.args[1] if code is not None and len(error.args) > 1 else error)  # type: ignore[union-attr]
    lost = raw is None or code == 0 or bool(dialect.is_disconnect(error, raw, None))  # type: ignore[arg-type]
    words = words or "the connection is closed"
    if url is not None:
        words = redact(words, url)
    return DatabaseError(f"{what}: {words}" + (f" (error {code})" if code else ""), code, lost=lost)
