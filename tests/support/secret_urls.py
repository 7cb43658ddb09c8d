"""Database URLs with a marker where a password may be, by design or by a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

MARKER = "S3cr3tPW"

_OPTIONS = (
    "charset",
    "connect_timeout",
    "read_timeout",
    "read_default_file",
    "ssl",
    "ssl_ca",
    "ssl_key",
    "client_flag",
    "local_infile",
    "conv",
    "port",
    "autocommit",
    "nosuch",
    "password",
    "passwd",
    "init_command",
    "unix_socket",
    "bind_address",
    "cursorclass",
    "db",
)
_PASSWORDS = (
    MARKER,
    f"{MARKER}@x",
    f"x@{MARKER}",
    f"{MARKER}/x",
    f"{MARKER}#x",
    f"{MARKER}?x=1",
    f"{MARKER}%zz",
    f"{MARKER}:x",
    f"x:{MARKER}",
    f"{MARKER}\n",
    f"{MARKER}'",
    f'{MARKER}"',
    f"{MARKER} x",
    f"\\{MARKER}ö",
)


def secret_urls() -> Iterator[str]:
    """Every URL, none of which leads to a server that answers."""
    for password in _PASSWORDS:
        for form in dict.fromkeys((password, quote(password, safe=""))):
            yield f"mysql://u:{form}@127.0.0.1:1/db"
            yield f"mysql://u:{form}@127.0.0.1:1/db?nosuch=1"
            yield f"mysql://u/{form}@127.0.0.1:1/db"
            yield f"mysql://u;{form}@127.0.0.1:1/db"
            yield f"mysql://{form}@127.0.0.1:1/db"
            yield f"mysql:/u:{form}@127.0.0.1:1/db"
            yield f"u:{form}@127.0.0.1:1/db"
            yield f"sqlite://u:{form}@h/db"
            yield f"sqlite:///mysql://u:{form}@h/db"
    for option in _OPTIONS:
        yield f"mysql://u@127.0.0.1:1/db?{option}={MARKER}"
        yield f"mysql://u:{MARKER}@127.0.0.1:1/db?{option}={MARKER}&{option}=x"
        yield f"mariadb://u:x@127.0.0.1:1/db?charset=x&{option}={MARKER}"
        yield f"sqlite:////nowhere/x.db?{option}={MARKER}"
    for scheme in ("postgresql", "mysql+foo", "mysql+asyncmy", "jdbc:mysql", "redis", "", "mysql+pymysql+x", MARKER):
        yield f"{scheme}://u:{MARKER}@127.0.0.1:1/db"
    yield f"mysql://u:{MARKER}@127.0.0.1:port/db"
    yield f"mysql://u:x@127.0.0.1:{MARKER}/db"
    yield f"mysql://u:{MARKER}@[::1/db"
    yield f"mysql://u:{MARKER}@127.0.0.1"
    yield f"mysql://u:{MARKER}@"
    yield MARKER
