"""What is done where a lock is on a network file system: a warning, an error with ``strict``, or nothing.

Two mounts of one directory may each keep locks of their own there, and then two replicas hold one lock at once. Nothing
that a single process can try shows that, so the kind of the mount decides.
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
"""The environment variable that makes the warning an error where the code does not say."""

_NOT_STRICT: Final = ("", "0", "false", "no", "off")
_SKIPPED: Final = ("sharedvol", "sharedvol_sidecar", "contextlib")
_warned: dict[Hashable, object] = {}  # by mount


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What to do about a network file system.

    Attributes:
        allow: nothing.
        strict: raise an error instead of a warning; None as ``SHAREDVOL_STRICT`` says.

    Raises:
        ValueError: both.
    """

    allow: bool = False
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.allow and self.strict:
            raise ValueError("allow_network and strict: a network file system is either accepted or refused; give one")

    def check(self, fd: object, what: str, path: str) -> None:
        """Warn once for each mount, or raise.

        Args:
            fd: a descriptor on the mount. Anything else is the handle of another system's lock, which is not checked.
            what: the noun of what is there, such as ``lock``.
            path: where it is, for the message.

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
            del _warned[key]  # warnings are errors here: the next use is one as well
            raise


ALLOWED: Final = NetworkPolicy(allow=True)
"""For what is below a directory that was checked."""


def strict_by_environment() -> bool:
    """Return whether ``SHAREDVOL_STRICT`` is set, and not to one of 0, false, no and off."""
    return os.environ.get(STRICT_VARIABLE, "").strip().lower() not in _NOT_STRICT


def describe_mount(mount: Mount, accept: str = "allow_network=True") -> str:
    """Return what is wrong with a network file system and what to do, to follow the name of what is on it.

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
    """Return the ``stacklevel`` of the code that uses the library, for a warning that the caller of this gives."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        frame, level = frame.f_back, level + 1
    return level
