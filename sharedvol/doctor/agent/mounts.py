"""The mounts of and below a directory, in the form that the doctor uses."""

from __future__ import annotations

import os

from sharedvol import mounts
from sharedvol.mounts import parse

__all__ = ["mount_of", "mounts_below", "parse"]


def mount_of(fd: int) -> dict[str, str]:
    """Return the mount of an open directory: its ``point``, ``kind``, ``source`` and ``options``."""
    mount = mounts.mount_of(fd)
    if mount is None:
        return {"point": "", "kind": "", "source": "", "options": ""}
    options = f"{mount.options},{mount.super_options}"
    return {"point": mount.point, "kind": mount.kind, "source": mount.source, "options": options}


def mounts_below(fd: int) -> list[str]:
    """Return the mount points below an open directory."""
    path = os.readlink(f"/proc/self/fd/{fd}").rstrip("/") + "/"
    return sorted({one.point for one in mounts.read_mounts() if one.point.startswith(path)})
