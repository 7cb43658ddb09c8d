"""The sidecar's own directory and its locks, which no other user may write."""

from __future__ import annotations

import contextlib
import errno
import os
import re

from sharedvol import AlreadyPublishedError, FileLock, publish
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.directory import Directory

PRIVATE = ".sharedvol"
"""The sidecar's own directory, in the spool and in the destination."""


def open_private(root: Directory) -> Directory:
    """Open the sidecar's own directory in the spool or the destination. Make it if it is missing.

    The sidecar trusts its content. So it must be the sidecar's, and no other user may write it.

    Raises:
        ConfigError: it belongs to another user, or others can write it.
        OSError: it cannot be made.
    """
    try:
        private = root.make(PRIVATE, 0o700)[0]
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ConfigError(f"{root.shown}/{PRIVATE} is not a directory: remove it") from None
        raise
    info = os.fstat(private.fd)
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        private.close()
        raise ConfigError(
            f"{root.shown}/{PRIVATE} belongs to user {info.st_uid} with mode {info.st_mode & 0o777:03o}, and the "
            f"sidecar runs as user {os.geteuid()}: run it as that user, or check the directory and remove it"
        )
    return private


def private_lock(path: str | os.PathLike[str], timeout: float | None = None) -> FileLock:
    """Return a lock for the sidecar's user alone. Network file systems are reported by `network_mounts` instead.

    Args:
        path: the lock file.
        timeout: seconds to wait; None until it is free, 0 not at all.
    """
    return FileLock(path, timeout=timeout, mode=0o600, allow_network=True)


def directory_id(root: Directory) -> str:
    """Return the id of a spool or a destination. It is the same at whatever path the directory is mounted.

    Raises:
        ConfigError: the file of the id contains something else.
        OSError: the id cannot be read or written.
    """
    with open_private(root) as private:
        if private.inode("id") is None:  # check first, because nothing new can be written on a full disk
            with contextlib.suppress(AlreadyPublishedError), publish(f"/proc/self/fd/{private.fd}/id") as file:
                file.write(os.urandom(8).hex())
        fd = os.open("id", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=private.fd)
        try:
            text = os.read(fd, 100).decode("ascii", "replace")
        finally:
            os.close(fd)
        if not re.fullmatch(r"[0-9a-f]{16}", text):
            raise ConfigError(f"{private.shown}/id does not contain an id: remove it if nothing is being collected")
        return text
