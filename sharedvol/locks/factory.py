"""Locks by URL, on any engine."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import unquote

from sharedvol.locks.protocol import Lock

_KNOWN: Final = "file:///path, mysql://user@host/database, mariadb://…, redis://host:6379/0, rediss://…, unix:///socket"
_REDIS: Final = ("redis", "rediss", "unix")
_NAME_MAX: Final = 255  # bytes, see pathconf(3)


def open_lock(
    url: str,
    name: str | None = None,
    *,
    timeout: float | None = None,
    fenced: bool = False,
    purpose: str = "",
    allow_unsafe: bool = False,
    allow_network: bool = False,
    strict: bool | None = None,
) -> Lock:
    """Return a lock on a file, a MySQL or MariaDB server, or a Redis server. The first acquire connects.

    ::

        with open_lock("file:///app/shared/locks", "nightly-report", timeout=60) as lock:
            ...

    Args:
        url: ``file:///dir/x`` is the lock file itself, and with a name ``file:///dir`` its directory, where the
            file is ``<name>.lock``. ``mysql://``, ``mariadb://`` with or without a driver, ``redis://``,
            ``rediss://`` and ``unix://`` say which server. What is special in a URL is written %23 and so on.
        name: what to lock; or as the part of the URL after ``#``. Neither slashes nor control characters.
        timeout: seconds to wait; None waits for ever, 0 not at all.
        fenced: have a `Lock.token`, and tell others who holds.
        purpose: what the holder tells others that it is for; at most 200 characters. Told where ``fenced``.
        allow_unsafe: also lock where the server would keep nobody out, such as on a node of a cluster. Of no
            meaning for files.
        allow_network, strict: as for `FileLock`. Of no meaning for servers.

    Raises:
        ValueError: the URL or the name is none that can be used; it is not repeated where it may hold a password.
            ``allow_network`` and ``strict`` for a file.
        DatabaseError: the packages for the engine are missing; the message says what to install.
    """
    scheme, base, name = _taken_apart(url, name)
    if scheme == "file":
        from sharedvol.locks.file import FileLock

        return FileLock(
            _path(base, name),
            timeout=timeout,
            fenced=fenced,
            purpose=purpose,
            allow_network=allow_network,
            strict=strict,
        )
    if scheme.partition("+")[0] in ("mysql", "mariadb"):
        from sharedvol.locks.mysql import NamedLock

        return NamedLock(base, _named(name), timeout=timeout, allow_unsafe=allow_unsafe, fenced=fenced, purpose=purpose)
    if scheme in _REDIS:
        from sharedvol.locks.redis import RedisLock

        return RedisLock(base, _named(name), timeout=timeout, allow_unsafe=allow_unsafe, fenced=fenced, purpose=purpose)
    raise ValueError(f"no locks are known of {scheme + '://'!r}: say {_KNOWN}")


def _taken_apart(url: str, name: str | None) -> tuple[str, str, str | None]:
    """The scheme, the URL without its fragment, and the name, which may be the fragment."""
    # Not one of these messages repeats the URL, which may hold a password.
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("the lock's URL has spaces or control characters: write them as %20 and so on")
    base, mark, fragment = url.partition("#")
    scheme, separator, rest = base.partition("://")
    scheme = scheme.lower()
    if not separator or not scheme.replace("+", "").isalnum():
        raise ValueError(f"a lock's URL begins with its scheme: say {_KNOWN}")
    if mark and ("@" in fragment or "/" in fragment):
        raise ValueError("a # in the lock's URL, before an @ or a slash: write it as %23 if it is of the password")
    if mark:
        if name is not None:
            raise ValueError("the lock is named twice: by the URL's part after # and by name")
        name = _decoded(fragment)
    if name is not None:
        _check_name(name)
    return scheme, f"{scheme}://{rest}", name


def _check_name(name: str) -> None:
    if not name:
        raise ValueError("the lock's name is empty: say name=…, or …#name at the end of the URL")
    if "/" in name or any(character < " " or "\x7f" <= character <= "\x9f" for character in name):
        raise ValueError(f"lock name {name!r}: without slashes and control characters")


def _named(name: str | None) -> str:
    if name is None:
        raise ValueError("a lock on a server needs a name: say name=…, or …#name at the end of the URL")
    return name


def _path(base: str, name: str | None) -> str:
    host, slash, rest = base.removeprefix("file://").partition("/")
    if not slash or host not in ("", "localhost"):
        raise ValueError("a file's URL names a host, or has too few slashes: say file:///path, which is absolute")
    if "?" in rest:
        raise ValueError("the lock's URL: a file has no options; write a ? in its path as %3F")
    path = slash + _decoded(rest)
    if any(character < " " or character == "\x7f" for character in path):
        raise ValueError("the lock's URL: no control characters in a lock's path")
    if name is not None:
        file = f"{name}.lock"
        if name.startswith((".", "-")) or len(os.fsencode(file)) > _NAME_MAX:
            raise ValueError(f"lock name {name!r}: as a file name it must not begin with . or -, nor be that long")
        return os.path.join(path, file)
    if path.endswith("/"):
        raise ValueError("the lock's URL is a directory: give the lock's name, too")
    return path


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("the lock's URL has bytes after a % that are not UTF-8") from None
