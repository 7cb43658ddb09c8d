"""Compare the version of a cache's directory, and purge the entries of another version exactly once.

::

    <dir>/version.lock     locked while the version is compared and the old entries are removed
    <dir>/version          one line: the version of ``entries/``
    <dir>/entries/         emptied when the version changes; nothing else is ever removed

``version`` is written last, in one step. If a process is killed while it purges, the next one starts the purge again.
The protocol is the same in every language. Each version has a directory of its own in ``entries/`` (see
`sharedvol.cache.entries`), which only this module creates, under the lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from typing import Final

from sharedvol.cache.temporary import remove
from sharedvol.errors import (
    CacheError,
    CacheTimeout,
    LockFileError,
    LockTimeout,
    NetworkFileSystemError,
    PublishError,
    describe,
    remedy,
)
from sharedvol.filesystem import open_directory, read_file
from sharedvol.locks.file.below import LockBelow
from sharedvol.network import ALLOWED, NetworkPolicy
from sharedvol.publishing import publish, remove_stale_temporaries
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX

MAX_VERSION: Final = 200
"""The longest version, in characters."""

_VERSION: Final = "version"
_LOCK: Final = "version.lock"
_ENTRIES: Final = "entries"
_HINTS: Final = {
    "ENOENT": "create its parent directory, or mount the volume",
    "EACCES": "give user {user} access to it and its contents",
    "EPERM": "give user {user} access to it and its contents",
    "EEXIST": "a part of it is not a directory: remove it",
}


def check_version(version: str) -> None:
    """Refuse a version that cannot be written as a line of text.

    Raises:
        TypeError: ``version`` is not text.
        ValueError: ``version`` is empty, too long, or not printable.
    """
    if not isinstance(version, str):
        raise TypeError(f"version {version!r}: give text, such as {str(version)!r}")
    if not version or len(version) > MAX_VERSION or not version.isprintable() or version != version.strip():
        raise ValueError(
            f"version {version!r}: give 1 to {MAX_VERSION} printable characters, without blanks around them"
        )


def directory_name(version: str) -> str:
    """Return the name of a version's directory in ``entries/``."""
    return hashlib.blake2b(version.encode(), digest_size=16).hexdigest()


def enter(directory: str, version: str, timeout: float | None, network: NetworkPolicy = ALLOWED) -> bool:
    """Prepare ``directory`` for the entries of ``version``. Remove the entries of another version.

    Returns:
        Whether this call did it, which is true for exactly one of all calls with a new version.

    Raises:
        CacheError: the directory cannot be used, or holds files that do not belong to a cache.
        CacheTimeout: another process purges, and is not ready in time.
        NetworkFileSystemError: it is on a network file system, which ``network`` refuses.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        with _opened(directory) as top:
            network.check(top, "cache", directory)
            _refuse_foreign(top, directory)
            with _lock(directory, top, timeout):
                purged = _current(top, directory) != version
                if purged:
                    _refuse_foreign(top, directory)
                    _purge(_path_of(top), version)
                _create(_path_of(top), version)
        return purged
    except LockTimeout as error:
        raise CacheTimeout(f"cache {directory!r} is being purged: {error}", None, error.waited) from error
    except PublishError as error:
        raise CacheError(
            f"cannot use cache {directory!r}: cannot write {os.path.join(directory, _VERSION)!r}: "
            f"{os.strerror(error.errno or 0)}; {remedy(error, **_HINTS)}"
        ) from error
    except NetworkFileSystemError:
        raise
    except LockFileError as error:
        raise CacheError(f"cannot use cache {directory!r}: {error}") from error
    except OSError as error:
        raise _failed(directory, error) from error


def renew(directory: str, version: str) -> bool:
    """Create the version's directory again if another process removed it. Return False if another version took over.

    It never waits: the lock's holder may be purging this version or be stopped, and the caller may be an event loop.

    Raises:
        OSError, LockTimeout: it cannot be created, or not now.
    """
    with _opened(directory) as top:
        if _current(top, directory) != version:
            return False
        with _lock(directory, top, 0):
            if _current(top, directory) != version:
                return False
            _create(_path_of(top), version)
    return True


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    """Open the cache's directory once, because its path could lead elsewhere between the check and the purge."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _path_of(top: int) -> str:
    return f"/proc/self/fd/{top}"


def _lock(directory: str, top: int, timeout: float | None) -> LockBelow:
    path = os.path.join(directory, _LOCK)
    return LockBelow(path, lambda: contextlib.nullcontext(top), timeout=timeout, allow_network=True)


def _purge(directory: str, version: str) -> None:
    """Remove all entries and write the version, under the lock."""
    try:
        entries = open_directory(os.path.join(directory, _ENTRIES))
    except FileNotFoundError:
        pass
    else:
        try:
            for name in os.listdir(entries):
                remove(name, entries)
        finally:
            os.close(entries)
    remove_stale_temporaries(directory, allow_network=True)
    with publish(os.path.join(directory, _VERSION), replace=True, permissions=0o644) as file:
        file.write(f"{version}\n")


def _create(directory: str, version: str) -> None:
    """Create the version's directory, under the lock."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(directory, _ENTRIES))
    entries = open_directory(os.path.join(directory, _ENTRIES))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory_name(version), dir_fd=entries)
    finally:
        os.close(entries)
    made = open_directory(os.path.join(directory, _ENTRIES), directory_name(version))
    try:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=made, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        os.close(made)


def _current(top: int, directory: str) -> str | None:
    """Return the version that is written there; None if there is no complete line."""
    text = read_file(_VERSION, top)
    if text is None and _exists(top, _VERSION):
        raise CacheError(
            f"{os.path.join(directory, _VERSION)!r} cannot be read, or is no regular file: remove it, with the "
            f"{_ENTRIES!r} beside it"
        )
    line = None if text is None else text.decode("utf-8", "replace")
    return line[:-1] if line is not None and line.endswith("\n") else None


def _refuse_foreign(top: int, directory: str) -> None:
    names = os.listdir(top)
    foreign = [name for name in names if name != _LOCK and not name.endswith(TEMPORARY_SUFFIX)]
    if foreign and _VERSION not in names:
        raise CacheError(
            f"{directory!r} is no cache: it holds {min(foreign)!r} and no file {_VERSION!r}; a cache needs a directory "
            "of its own, which may be missing or empty"
        )


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _failed(directory: str, error: OSError) -> CacheError:
    found = re.sub(r"^/proc/self/fd/\d+", lambda _: directory, str(error.filename)) if error.filename else ""
    what = f" at {found!r}" if found else ""
    hint = remedy(error, **_HINTS)
    return CacheError(f"cannot use cache {directory!r}: {describe(error)}{what}; {hint}")
