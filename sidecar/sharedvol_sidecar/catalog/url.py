"""URLs of catalogs, checked."""

from __future__ import annotations

import os
import re
from typing import Any

import sqlalchemy as sa

from sharedvol.database import url as database_url
from sharedvol_sidecar.errors import ConfigError


def read_url(text: str, *, options: bool = True) -> sa.URL:
    """Return the URL of a catalog, with the driver.

    Args:
        text: the URL.
        options: also check its options, which loads the driver.

    Raises:
        ConfigError: it is not a URL, names a database that cannot hold a catalog, or has an option that the driver
            does not take. The message does not repeat the text, because it may hold a password.
    """
    if not text.startswith("sqlite") and text.count("@") > 1:
        raise ConfigError("it has '@' more than once: in a name, a password or an option write %40 for it")
    try:
        url = database_url.read_url(text)
        # SQLAlchemy's mysql dialect finds out which of the two the server is.
        url = url.set(drivername=re.sub("^mariadb(?=[+]|$)", "mysql", url.drivername))
        dialect: Any = database_url.dialect_class(url)
    except ValueError as error:
        raise ConfigError(str(error).replace("not a database URL", "the catalog's URL is none")) from None
    if dialect.is_async or dialect.name not in ("sqlite", "mysql"):
        raise ConfigError(f"a catalog cannot be in {database_url.scheme(url)}: say mysql:// or sqlite:///")
    if dialect.name == "sqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise ConfigError("the catalog's SQLite URL names no file: say sqlite:////path/to/catalog.db")
        url = url.set(database=os.path.abspath(url.database))
    elif not url.database:
        raise ConfigError("the catalog's URL names no database: say mysql://user@host/database")
    if not options:
        return url
    try:
        database_url.check_options(url, dialect(dbapi=dialect.import_dbapi()))
    except ModuleNotFoundError as error:
        raise ConfigError(f"the driver of {database_url.scheme(url)} is not installed: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return url


def check_url(text: str, *, options: bool = True) -> None:
    """Check the setting ``catalog``: a URL, empty for the file in the destination, or ``none``.

    Raises:
        ConfigError: as for `read_url`.
    """
    if text not in ("", "none"):
        read_url(text, options=options)
