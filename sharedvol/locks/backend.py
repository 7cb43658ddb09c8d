"""What the file lock needs of the operating system."""

from __future__ import annotations

from typing import Any, Protocol

Handle = Any
"""An open lock file: a descriptor on Linux, filelock's object elsewhere. Only the backend looks inside."""


class Closer(Protocol):
    """Closes handles."""

    def close(self, handle: Handle, /) -> None:
        """Close ``handle`` without unlocking it for others that share its open file description."""


class LockBackend(Closer, Protocol):
    """The locks of one operating system: `sharedvol.locks.file.linux`, or `sharedvol.locks.file.portable`."""

    def open_lock_file(self, path: str, mode: int) -> Handle:
        """Open the lock file. Create it with permission bits ``mode`` if it is missing."""

    def identify(self, handle: Handle, path: str, /) -> object:
        """Return a value that differs between lock files."""

    def mark(self, handle: Handle, /) -> int:
        """Mark the handle so that `is_of` recognizes it, and return the mark."""

    def is_of(self, handle: Handle, identity: object, marked: int, /) -> bool:
        """Return whether the handle still refers to the file that was opened."""

    def is_current(self, path: str, identity: object) -> bool:
        """Return whether ``path`` still names the file that was opened."""

    def why_lost(self, handle: Handle | None, path: str, identity: object, /) -> str | None:
        """Return how a held lock was lost, in words. None if it was not."""

    def try_both(self, handle: Handle, path: str, shared: bool, /) -> bool:
        """Take the locks of both families, or neither. Never waits."""

    def wait_first(self, handle: Handle, path: str, shared: bool, /) -> None:
        """Wait for the lock of the first family."""

    def wait_second(self, handle: Handle, path: str, shared: bool, /) -> None:
        """Wait for the lock of the second family."""

    def unlock_first(self, handle: Handle, /) -> None:
        """Release the lock of the first family."""

    def unlock(self, handle: Handle, /) -> None:
        """Release both locks."""
