"""The object that ``acquire`` returns, and ``with`` on a lock."""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from sharedvol.errors import LockLostError
from sharedvol.locks.arguments import DEFAULT, Default
from sharedvol.locks.frames import block_of, name_of
from sharedvol.locks.grant import Grant, Owner

_log = logging.getLogger(__name__)
_Lock = TypeVar("_Lock", bound=Any)


class AcquiredLock(Generic[_Lock]):
    """An acquired lock, which any thread or task may release.

    A ``with`` on it releases at its end, and does not acquire again. If the object is dropped without a release, the
    lock stays with the thread or task that acquired, and is released when that has ended.
    """

    __slots__ = ("__weakref__", "_lock", "grant")

    def __init__(self, lock: _Lock) -> None:
        self._lock = lock
        self.grant: Grant | None = None

    def release(self) -> None:
        """Undo the acquire, once, from any thread or task.

        In a forked child, which starts without the lock, this does nothing.

        Raises:
            NotLockedError: this object was released before.
            LockLostError: as the lock's ``release``.
        """
        self._lock._release_acquired(self)
        self.grant = None  # it is already None except in a forked child

    def __enter__(self) -> _Lock:
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockLostError as lost:
            self._lock._say_lost(lost, kind)

    async def __aenter__(self) -> _Lock:
        return self._lock

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<{'held' if self.grant is not None and self.grant.active else 'released'} {self._lock!r}>"

    def __del__(self) -> None:
        # If an interrupt ends this, the next check of the hold finds that the weak reference is dead.
        try:
            grant = self.grant
            if grant is not None and grant.active:
                grant.drop(self)
                if grant.owner() is None:  # else its end is still to be reported
                    self._lock._free_orphan(grant)
        except Exception:  # an interrupt may have ended __init__; the interpreter may be ending
            return


class BlockLock:
    """A lock for ``with`` and ``async with``. The end of a block releases the hold of that block, in any thread."""

    def _acquire(self, timeout: float | Default | None, block: int | None, acquired: Any) -> Self:
        """Take the lock for a block, or for the object that ``acquire`` returns."""
        raise NotImplementedError

    async def _acquire_async(
        self, timeout: float | Default | None, block: int | None, caller: Owner | None, acquired: Any
    ) -> AcquiredLock[Self]:
        """Take the lock for the task ``caller``. None is the running task."""
        raise NotImplementedError

    def _leave(self, block: int, *, task_first: bool) -> None:
        """Release the hold of a block.

        Raises:
            NotLockedError, LockLostError: as ``release``.
        """
        raise NotImplementedError

    # The frame identifies a `with`, because it lives as long as the block. This includes generators, in any thread.

    def __enter__(self) -> Self:
        return self._acquire(DEFAULT, block_of(sys._getframe(1)), None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(name_of(sys._getframe(1)), task_first=False)
        except LockLostError as lost:
            self._say_lost(lost, kind)

    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        return self._enter_async(block_of(sys._getframe(1)))

    async def _enter_async(self, block: int) -> Self:
        await self._acquire_async(DEFAULT, block, None, AcquiredLock(self))
        return self

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        return self._leave_async(name_of(sys._getframe(1)), kind)

    async def _leave_async(self, block: int, kind: type[BaseException] | None) -> None:
        try:
            # A shared lock may have holds of the task and of its thread: the task's comes first.
            self._leave(block, task_first=True)
        except LockLostError as lost:
            self._say_lost(lost, kind)

    def _say_lost(self, lost: LockLostError, kind: type[BaseException] | None) -> None:
        """Raise ``lost`` at the end of a block, or log it if the block raises an exception already."""
        if kind is None:
            raise lost
        _log.warning("%s", lost)
