"""Read the URL of a database, and name the database in messages without its secrets.

A URL has secrets in more places than its password: an option can be one, a user name without a password may be a
password in the wrong place, and a driver repeats values in its errors. So every message about a URL is made here.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from sharedvol.text import ACCOUNT

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect

HIDDEN: Final = "***"
"""Replaces what a message must not show."""

NOT_INSTALLED: Final = "SQLAlchemy is not installed, which databases need: install sharedvol[mysql]"

NOT_A_URL: Final = "not a database URL: it should look like mysql://user@host/database"

_DEFAULT_DRIVERS: Final = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
_SCHEME: Final = re.compile(r"[a-z0-9+]{1,40}")
_OPTION: Final = re.compile(r"[a-z_]{1,40}")
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,255}")
_NAME: Final = re.compile(r"[\w$.-]{1,64}")
_SQLITE_OPTIONS: Final = frozenset(
    {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
)
_SHORTEST: Final = 4  # characters of a value that is hidden everywhere; a shorter one is hidden only in quotes


def read_url(target: object) -> URL:
    """Return ``target`` as an SQLAlchemy URL with a driver.

    Raises:
        ModuleNotFoundError: SQLAlchemy is missing.
        ValueError: it is not a URL. The message does not repeat it.
    """
    import sqlalchemy

    try:
        url: URL = sqlalchemy.make_url(target)  # type: ignore[arg-type]
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter from a port that is not a number
        raise ValueError(NOT_A_URL) from None
    # For SQLAlchemy the host begins after the first @, and in mysql://user/password@host the rest is the database's
    # name. Then messages would show a part of a password.
    if "@" in (url.host or "") or ("@" in (url.database or "") and not is_sqlite(url)):
        raise ValueError("the database URL has one @ too many: write an @ in a password as %40")
    if isinstance(target, str) and "@" in target and url.username is None and not is_sqlite(url):
        raise ValueError("the database URL has an @ after its host: write an @ in a password or an option as %40")
    if is_sqlite(url) and (url.host or url.username or url.password is not None):
        raise ValueError("the SQLite URL has a host or a user: it should look like sqlite:////path/to/file")
    if is_sqlite(url) and "://" in (url.database or ""):
        raise ValueError("the SQLite URL has another URL as its path: give only that one")
    return url.set(drivername=_DEFAULT_DRIVERS.get(url.drivername, url.drivername))


def dialect_class(url: URL) -> Any:
    """Return SQLAlchemy's dialect for a URL.

    Raises:
        ValueError: SQLAlchemy does not know the database.
    """
    import sqlalchemy

    try:
        return url.get_dialect()
    except (sqlalchemy.exc.NoSuchModuleError, ValueError):  # the latter of mysql+one+another
        raise ValueError(f"SQLAlchemy knows no database {scheme(url)!r}: use mysql://") from None


def is_sqlite(url: URL) -> bool:
    """Return whether the URL names an SQLite file."""
    return url.drivername.partition("+")[0] == "sqlite"


def scheme(url: URL) -> str:
    """Return the scheme of a URL for a message."""
    return url.drivername if _SCHEME.fullmatch(url.drivername) else HIDDEN


def label(url: URL) -> str:
    """Return the name of the database for a message: ``user@host:3306/database``.

    The user may be a password in the wrong place, so it is only shown if it looks like an account.
    """
    if is_sqlite(url):
        return f"SQLite {url.database or ':memory:'!r}"
    user = f"{url.username}@" if ACCOUNT.fullmatch(url.username or "") else ""
    port = f":{url.port}" if url.port else ""
    return f"{user}{_plain(_HOST, url.host or 'localhost')}{port}/{_plain(_NAME, url.database or '')}"


def without_secrets(url: URL) -> str:
    """Return the URL with ``***`` for the password, the options, and a user that may be a password."""
    options = f"?{HIDDEN}" if url.query else ""
    if is_sqlite(url):
        return f"{scheme(url)}:///{url.database or ''}{options}"
    user, _, place = label(url).rpartition("@")
    if user:
        user = f"{user}:{HIDDEN}@" if url.password is not None else f"{user}@"
    elif url.username or url.password is not None:
        user = f"{HIDDEN}@"
    return f"{scheme(url)}://{user}{place}{options}"


def check_options(url: URL, dialect: Dialect) -> None:
    """Check the options of a URL as its driver does, without connecting.

    Raises:
        ValueError: the driver does not accept an option or its value. The message names only the option.
    """
    if not url.query or _is_taken(url, dialect):
        return
    for name in url.query:
        if not _is_taken(url.set(query={name: url.query[name]}), dialect):
            known = repr(name) if _OPTION.fullmatch(name) else HIDDEN
            raise ValueError(
                f"the database URL has an option that cannot be used: {known} is not an option of "
                f"{dialect.driver}, or its value is not valid"
            )
    raise ValueError(f"the database URL has options that cannot be used together by {dialect.driver}")


def _is_taken(url: URL, dialect: Dialect) -> bool:
    # Every error of the driver here is about an option, because nothing connects. Its text may repeat a secret, or
    # lines of a file that an option names.
    if dialect.driver == "pysqlite" and "uri" not in url.query and not _SQLITE_OPTIONS.issuperset(url.query):
        return False  # SQLAlchemy would only print a warning with the option
    try:
        arguments, options = dialect.create_connect_args(url)
        if dialect.driver == "pymysql":
            if not any(name.startswith("ssl") for name in url.query):
                options["ssl_disabled"] = True  # preparing for TLS takes 20 ms
            options.pop("password", None)  # PyMySQL would encode it in Latin-1, and it is not an option
            dialect.loaded_dbapi.connect(*arguments, **{**options, "defer_connect": True})
        elif dialect.driver == "pysqlite":
            dialect.loaded_dbapi.connect(":memory:", **options).close()
    except Exception:
        return False
    return True


def encode_password(options: MutableMapping[str, Any]) -> None:
    """Encode the password in PyMySQL's arguments as UTF-8. PyMySQL itself would encode it in Latin-1."""
    if isinstance(options.get("password"), str):
        options["password"] = options["password"].encode()


def redact(text: str, url: URL) -> str:
    """Return a driver's message with ``***`` for the password, the options, and a user that may be a password."""
    secrets = {str(url.password)} if url.password is not None else set()
    if url.username and not (_NAME if url.password is not None else ACCOUNT).fullmatch(url.username):
        secrets.add(url.username)
    for value in url.query.values():
        for one in (value,) if isinstance(value, str) else value:
            # A server repeats the end of a statement (`init_command`), so each word of it is a secret as well.
            secrets.update({one, *(word for word in re.split(r"[\s'\"=;,()]+", one) if len(word) >= _SHORTEST)})
    forms = {form for one in secrets if one for form in (one, quote(one), quote_plus(one), repr(one)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= _SHORTEST:
            text = text.replace(form, HIDDEN)
        else:
            text = re.sub(rf"(?<=['\"]){re.escape(form)}(?=['\"])", HIDDEN, text)
    return text


def _plain(pattern: re.Pattern[str], text: str) -> str:
    return text if not text or pattern.fullmatch(text) else HIDDEN
