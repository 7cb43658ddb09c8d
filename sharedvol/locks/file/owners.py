"""The descriptors of one lock object: those that are locked, and one that stays open for the next use."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from sharedvol import forks, native
from sharedvol.errors import LockDeadlockError, LockLostError
from sharedvol.locks.grant import (
    INHERITED,
    RELEASED,
    Acquired,
    Grant,
    Owner,
    no_owner,
    of_block,
    of_caller,
    owners_here,
    watch_end,
)

if TYPE_CHECKING:
    from sharedvol.locks.file.hold import Hold


class OwnerTable:
    """The holds of this process through one lock object, in the order in which they were granted."""

    def __init__(self) -> None:
        self.held: dict[Grant, Hold] = {}
        self.idle: list[Hold] = []
        self._inherited: list[tuple[Owner | None, Grant]] = []
        self._ended_early: list[int] = []  # blocks
        self._mutex = native.mutex()  # of `held` and what its grants count, without system calls
        self._noted: object = None  # the lock file that `_objects` knows to be locked by this
        self._watched: Callable[[], Owner | None] = no_owner  # whose end was watched last
        forks.track(self)

    def watch(self, owner: Owner) -> None:
        """Call `owner_ended` when ``owner``, the calling thread or task, has ended."""
        if self._watched() is not owner:
            watch_end(owner, self)
            self._watched = weakref.ref(owner)

    def of_caller(self) -> Grant | None:
        """Return the last grant of the calling thread or running task."""
        forks.notice()
        return of_caller(list(self.held)) if self.held else None

    def of_block(self, block: int, *, task_first: bool = False) -> Grant | None:
        """Return the grant of a ``with`` block that ends."""
        forks.notice()
        return of_block(list(self.held), block, self.ended_early, task_first=task_first)

    def ended_early(self, block: int) -> str:
        """Return why a block that ends has no hold: `RELEASED`, `INHERITED`, or "" if it has one."""
        if block in self._ended_early:
            self._ended_early.remove(block)
            return RELEASED
        return INHERITED if any(block in grant.blocks for _, grant in self._inherited) else ""

    def reenter(self, owner: Owner, block: int | None, acquired: Acquired | None) -> bool:
        """Count one more acquire of ``owner``, the caller, if it is inside a hold. Return whether it is."""
        with self._mutex:
            for grant in self.held:
                if grant.is_reentered_by(owner):
                    grant.add(block, acquired)
                    return True
        return False

    def undo_inherited(self, grant: Grant | None = None, block: int | None = None) -> bool:
        """Undo an acquire of the parent in a forked child, which holds nothing. Return whether there was one.

        Args:
            grant: the grant to undo. None for one of the caller's.
            block: the block that ends.
        """
        forks.notice()
        for _, one in self._inherited:
            if block in one.blocks:
                one.undo(block)
                return True
        # After a fork asyncio has no current task, though the child may be leaving its parent's `async with`.
        here = owners_here()
        for owner, one in self._inherited:
            mine = one is grant if grant is not None else owner in here or isinstance(owner, asyncio.Task)
            if mine and one.depth:
                one.undo(None)
                return True
        return grant is not None and grant.inherited

    def add(self, grant: Grant, hold: Hold) -> None:
        """Record that ``hold`` is locked for ``grant``."""
        if hold.identity != self._noted:
            _note(hold.identity, self)
            self._noted = hold.identity
        with self._mutex:
            self.held[grant] = hold

    def remove(self, grant: Grant) -> Hold | None:
        """Remove ``grant``. Return its hold."""
        return self.held.pop(grant, None)

    def undo(
        self, grant: Grant, block: int | None = None, *, acquired: Acquired | None = None, last: bool = False
    ) -> LockLostError | None:
        """Undo one acquire. The last one unlocks, whatever happens meanwhile. Return the error if the lock was lost.

        Args:
            grant: the grant of the hold.
            block: the block that ends.
            acquired: the object that the acquire returned, if it is released.
            last: unlock even if other acquires remain.

        Raises:
            KeyError: another thread has released it, or ``acquired`` was released before.
        """
        hold, ours = self.held[grant], False
        try:
            with self._mutex:
                if grant not in self.held or not (acquired is None or grant.is_taken_by(acquired)):
                    raise KeyError(grant)
                ours = last or grant.depth <= 1
                self._ended_early += grant.undo(block, acquired)
                if ours:
                    self.remove(grant)
                    grant.end()
                elif acquired is not None:
                    grant.drop(acquired)
            if not ours:
                if grant.owner() is None:
                    self.free_orphan(grant)
                return None
            lost = hold.release()
        except BaseException:
            if ours:
                hold.close()
                self.remove(grant)
                grant.end()
            raise
        self.keep(hold)  # another thread may use it after this, so an interrupt must not close it
        return lost

    def owner_ended(self, owner: Owner | None) -> None:
        """Free what a thread or task left when it ended. ``owner`` is None if its object was collected."""
        forks.notice()
        for grant in list(self.held):
            if grant.owner() in (owner, None):
                grant.forget_owner()
                self.free_orphan(grant)

    def free_orphan(self, grant: Grant) -> None:
        """Free the hold if no caller and no object can release it."""
        if grant.is_orphan and grant in self.held:
            with contextlib.suppress(KeyError):  # another thread has freed it
                self.undo(grant, last=True)

    def kept(self) -> Hold | None:
        """Remove and return the idle descriptor. None if there is none."""
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def keep(self, hold: Hold) -> None:
        """Keep one unlocked descriptor for the next use."""
        hold.end = None
        if hold.handle is None or self.idle:
            hold.close()
        else:
            self.idle.append(hold)

    def put_back(self, grant: Grant | None, hold: Hold) -> None:
        """Unlock after a failed acquire, also if an interrupt comes during this."""
        try:
            forks.notice()
            if grant is not None:
                self.remove(grant)
                grant.end()
            hold.put_back()
        except BaseException:
            hold.drop()
            raise
        self.keep(hold)

    def close(self) -> None:
        """Close all descriptors, which unlocks them."""
        forks.notice()
        for grant in list(self.held):
            hold = self.remove(grant)
            if hold is not None:
                hold.close()
        for hold in self.idle:
            hold.close()

    def renew(self) -> None:
        """Forget everything in a forked child, where `fork` has closed the descriptors."""
        self._inherited += [(grant.owner(), grant) for grant in self.held]  # a child may be renewed twice
        for grant in self.held:
            grant.active, grant.inherited = False, True
        self.held, self.idle, self._noted, self._mutex = {}, [], None, native.mutex()


def refuse_deadlock(path: str, identity: object, task: Owner | None = None) -> None:
    """Refuse a wait without a limit that only the caller could end.

    Args:
        path: the lock file, for the message.
        identity: of the lock file, from the backend.
        task: the waiting task, if the wait leaves the event loop running.

    Raises:
        LockDeadlockError: the caller holds the lock file through another object or call.
    """
    if is_held_here(identity, task):
        raise LockDeadlockError(
            f"lock {path!r} is held by this very thread or task, through another FileLock "
            "object or call: it would wait for itself for ever; share one object, or set a timeout"
        )


def is_held_here(identity: object, task: Owner | None = None) -> bool:
    """Return whether the caller would wait for itself for this lock file, through any object."""
    return any(grant.blocks_caller(task) for _, grant in _holding(identity))


def free_orphans(identity: object) -> bool:
    """Free the holds of owners that have just ended and were not reported yet. Return whether there were any."""
    found = [(own, grant) for own, grant in _holding(identity) if grant.is_orphan]
    for other, grant in found:
        other.free_orphan(grant)
    return bool(found)


_objects: dict[object, dict[int, weakref.ref[OwnerTable]]] = {}  # by lock file: the tables that have locked it
_mutex = native.mutex()


def _note(identity: object, own: OwnerTable) -> None:
    key = id(own)

    def forget(ref: weakref.ref[OwnerTable]) -> None:
        with _mutex:
            there = _objects.get(identity, {})
            if there.get(key) is ref:
                del there[key]
                if not there:
                    del _objects[identity]

    with _mutex:
        _objects.setdefault(identity, {})[key] = weakref.ref(own, forget)


def _holding(identity: object) -> list[tuple[OwnerTable, Grant]]:
    """Return the holds of this process on a lock file, through any object."""
    owns = [own for ref in list(_objects.get(identity, {}).values()) if (own := ref()) is not None]
    return [(own, grant) for own in owns for grant, hold in list(own.held.items()) if hold.identity == identity]


@forks.in_child
def _renew() -> None:
    global _mutex
    _mutex = native.mutex()
    _objects.clear()
