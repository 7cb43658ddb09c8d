"""What to do about a lock on a network file system: warn, raise an error with ``strict``, or accept it.

Two mounts of one directory may each keep their own locks there, and then two replicas hold one lock at once. A single
process cannot test for that, so the kind of the mount decides.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from sharedvol.errors import NetworkFileSystemError, NetworkFileSystemWarning
from sharedvol.mounts import DESKTOP, Mount, network_mount
from sharedvol.text import shown

STRICT_VARIABLE: Final = "SHAREDVOL_STRICT"
"""The environment variable that makes the warning an error, unless the code passes ``strict``."""

_NOT_STRICT: Final = ("", "0", "false", "no", "off")
_SKIPPED: Final = ("sharedvol", "sharedvol_sidecar", "contextlib")
_warned: dict[Hashable, object] = {}  # by mount


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What to do about a network file system.

    Attributes:
        allow: accept it without a warning.
        strict: raise an error instead of a warning; None as ``SHAREDVOL_STRICT`` says.

    Raises:
        ValueError: both are set.
    """

    allow: bool = False
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.allow and self.strict:
            raise ValueError("allow_network and strict: a network file system is either accepted or refused; give one")

    def check(self, fd: object, what: str, path: str) -> None:
        """Warn once for each mount, or raise.

        Args:
            fd: a descriptor on the mount. Any other object is a lock handle of another system and is not checked.
            what: what is on the mount, such as ``lock``, for the message.
            path: its path, for the message.

        Raises:
            NetworkFileSystemError: it is on a network file system, and this is strict.
        """
        if self.allow or not isinstance(fd, int):
            return
        found = network_mount(fd)
        if found is None:
            return
        key, mount = found
        text = f"{what} {path!r} {describe_mount(mount)}"
        if self.strict or (self.strict is None and strict_by_environment()):
            raise NetworkFileSystemError(errno.EOPNOTSUPP, text, path)
        this = object()
        if _warned.setdefault(key, this) is not this:
            return
        try:
            warnings.warn(text, NetworkFileSystemWarning, stacklevel=_level_of_caller())
        except BaseException:
            del _warned[key]  # warnings are errors here, so the next use must raise as well
            raise


ALLOWED: Final = NetworkPolicy(allow=True)
"""The policy for files in a directory that was checked already."""


def strict_by_environment() -> bool:
    """Return whether ``SHAREDVOL_STRICT`` is set, and not to one of 0, false, no and off."""
    return os.environ.get(STRICT_VARIABLE, "").strip().lower() not in _NOT_STRICT


def describe_mount(mount: Mount, accept: str = "allow_network=True") -> str:
    """Describe the risk of a network file system and what to do, as the end of a sentence about a file on it.

    Args:
        mount: of a kind that `sharedvol.mounts.is_network` names.
        accept: the setting that accepts it.
    """
    kind, point = shown(mount.kind), shown(mount.point)
    why, instead = "two mounts may each keep their own locks, so two replicas can hold one at once", ""
    if mount.kind in DESKTOP:
        why = "a directory of the host machine, where two containers have held one lock at once"
        instead = "a named volume or "
    return (
        f"is on {kind} (mounted at {point!r}): {why}; test it with `sharedvol doctor {shlex.quote(point)} --peer NAME` "
        f"in two containers and then set {accept}, or use {instead}a lock on a server (open_lock)"
    )


def _level_of_caller() -> int:
    """Return the ``stacklevel`` with which a warning points at the code that uses the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        frame, level = frame.f_back, level + 1
    return level
