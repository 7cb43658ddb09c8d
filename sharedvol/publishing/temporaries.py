"""Temporary files of `publish`: how to recognise them, and how to remove those that dead writers left.

A writer holds flock(2) on its temporary file until it ends. So a temporary file whose lock is free is stale, whichever
container its writer ran in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sharedvol.filesystem import open_file, open_top
from sharedvol.network import NetworkPolicy

TEMPORARY_SUFFIX = ".sharedvol-tmp"
"""Every temporary name is ``.<worker>-<random><suffix>``. It is hidden, so no collector takes it."""

PathLike = str | os.PathLike[str]


def is_temporary(name: str) -> bool:
    """Return whether a file name is one of a temporary file."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def stale_temporaries(
    directory: PathLike, *, allow_network: bool = False, strict: bool | None = None
) -> Iterator[Path]:
    """Find the temporary files in ``directory`` whose writers are dead. Subdirectories are not searched.

    The kernel knows whether a writer lives, because it holds flock(2) on its file.

    Args:
        directory: where to look.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        OSError: the directory cannot be read.
        NetworkFileSystemError: it is on a network file system, and this is ``strict``.
    """
    for name, fd, _ in _stale(directory, NetworkPolicy(allow_network, strict)):
        os.close(fd)
        yield Path(directory, name)


def remove_stale_temporaries(
    directory: PathLike, *, allow_network: bool = False, strict: bool | None = None
) -> list[Path]:
    """Remove what `stale_temporaries` finds, and return it. The file of a living writer is never touched.

    Args:
        directory: where to look.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        OSError: the directory cannot be read.
        NetworkFileSystemError: it is on a network file system, and this is ``strict``.
    """
    removed = []
    for name, fd, parent in _stale(directory, NetworkPolicy(allow_network, strict)):
        try:
            # Under the lock: a writer that has created the file but not locked it yet waits for this process, then
            # sees that its name was removed and makes another file.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)
                removed.append(Path(directory, name))
        finally:
            os.close(fd)
    return removed


def _stale(directory: PathLike, network: NetworkPolicy) -> Iterator[tuple[str, int, int]]:
    """Yield each stale temporary file: its name, a descriptor that holds its lock, and one of its directory.

    The caller closes the first descriptor. The directory's path is resolved once, so all names are in one directory.
    """
    parent = open_top(directory)
    try:
        network.check(parent, "directory", os.fspath(directory))
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if is_temporary(entry.name)]
        for name in names:
            try:
                fd = open_file(name, parent)
            except OSError:
                continue  # published or removed since, a symbolic link, or not readable
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Under the lock, because the writer may have published the file before this process locked it.
                    if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=parent, follow_symlinks=False)):
                        yield name, fd, parent
                        continue
            except OSError:
                pass  # its writer lives, or has just ended
            os.close(fd)
    finally:
        os.close(parent)
