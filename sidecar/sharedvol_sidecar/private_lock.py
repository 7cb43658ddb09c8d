"""The sidecar's own file locks."""

from __future__ import annotations

import os

from sharedvol import FileLock


def private_lock(path: str | os.PathLike[str], timeout: float | None = None) -> FileLock:
    """Return a lock for the sidecar's user alone. Network file systems are reported by `network_mounts` instead.

    Args:
        path: the lock file.
        timeout: seconds to wait; None until it is free, 0 not at all.
    """
    return FileLock(path, timeout=timeout, mode=0o600, allow_network=True)
