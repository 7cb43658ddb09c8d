"""The descriptors of one lock object: those that are locked, and one that is kept for the next use."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING

from sharedvol import forks, native
from sharedvol.errors import LockDeadlockError, LockLostError
from sharedvol.locks.grant import CALLED, INHERITED, RELEASED, Acquired, Grant, Owner, of_block, of_caller, owners_here

if TYPE_CHECKING:
    from sharedvol.locks.hold import Hold


class Ownership:
    """What this process holds through one lock object, in the order in which it was granted."""

    def __init__(self) -> None:
        self.held: dict[Grant, Hold] = {}
        self.idle: list[Hold] = []
        self._inherited: list[tuple[Owner | None, Grant]] = []
        self._ended_early: list[int] = []  # blocks
        self._mutex = native.mutex()  # of `held` and what its grants count, without system calls
        _all[id(self)] = self
        forks.track(self)

    def of_caller(self) -> Grant | None:
        """The last grant of the calling thread or running task."""
        forks.notice()
        return of_caller(list(self.held)) if self.held else None

    def of_block(self, block: int, *, task_first: bool = False) -> Grant | None:
        """The grant of a ``with`` block that ends."""
        forks.notice()
        return of_block(list(self.held), block, self.ended_early, task_first=task_first)

    def ended_early(self, block: int) -> str:
        """What left a block that ends without a hold: `RELEASED`, `INHERITED` or ""."""
        if block in self._ended_early:
            self._ended_early.remove(block)
            return RELEASED
        return INHERITED if any(block in grant.blocks for _, grant in self._inherited) else ""

    def reenter(self, owner: Owner, block: int | None, acquired: Acquired | None) -> bool:
        """Count one more acquire of ``owner``, which is calling, if it is inside of a hold."""
        with self._mutex:
            for grant in self.held:
                if grant.is_reentered_by(owner):
                    grant.add(block, acquired)
                    return True
        return False

    def undo_inherited(self, grant: Grant | None = None, block: int | None = None) -> bool:
        """In a forked child: whether this undoes what its parent acquired, which is nothing here.

        Args:
            grant: which; else one of the caller's.
            block: the block that ends.
        """
        forks.notice()
        for _, one in self._inherited:
            if block in one.blocks:
                one.undo(block)
                return True
        # After a fork asyncio tells no current task, though the child may be leaving its parent's `async with`.
        here = owners_here()
        for owner, one in self._inherited:
            mine = one is grant if grant is not None else owner in here or isinstance(owner, asyncio.Task)
            if mine and one.depth:
                one.undo(None)
                return True
        return grant is not None and grant.inherited

    def add(self, grant: Grant, hold: Hold) -> None:
        """``hold`` is locked, for ``grant``."""
        if not isinstance(grant.owner(), asyncio.Task):
            grant.enter()
        with self._mutex:
            self.held[grant] = hold

    def undo(
        self, grant: Grant, block: int | None = None, *, acquired: bool = False, last: bool = False
    ) -> LockLostError | None:
        """Undo one acquire. The last one unlocks, whatever happens meanwhile. Return the error if the lock was lost.

        Args:
            grant: which has it.
            block: the block that ends.
            acquired: what the acquire returned undoes it.
            last: it is the last, however many there were.

        Raises:
            KeyError: another thread has freed it.
        """
        hold = self.held[grant]
        try:
            with self._mutex:
                if grant not in self.held or (acquired and not grant.taken):
                    last = False
                    raise KeyError(grant)
                grant.objects -= acquired
                last = last or grant.depth <= 1
                self._ended_early += [one for one in grant.undo(block) if one != CALLED]
                if last:
                    del self.held[grant]
                    grant.end()
            if not last:
                self.free_orphan(grant)
                return None
            lost = hold.release()
            self.keep(hold)
            return lost
        except BaseException:
            if last:
                hold.close()
                self.held.pop(grant, None)
            raise

    def drop_acquired(self, grant: Grant) -> None:
        """What an acquire returned was collected without a release."""
        with self._mutex:
            grant.objects -= 1
        self.free_orphan(grant)

    def owner_ended(self, owner: Owner | None) -> None:
        """A thread or task has ended; None if it exists no more."""
        forks.notice()
        for grant in list(self.held):
            if grant.owner() in (owner, None):
                grant.forget_owner()
                self.free_orphan(grant)

    def free_orphan(self, grant: Grant) -> None:
        """Free it if nothing else ever will."""
        if grant.is_orphan and grant in self.held:
            with contextlib.suppress(KeyError):  # another thread was first
                self.undo(grant, last=True)

    def kept(self) -> Hold | None:
        """The descriptor that was kept, if there is one: no more of this object, until it is held or kept."""
        forks.notice()
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
        """After a failed acquire: nothing is locked."""
        forks.notice()
        if grant is not None:
            self.held.pop(grant, None)
            grant.end()
        hold.put_back()
        self.keep(hold)

    def close(self) -> None:
        """Close everything, which frees what was locked."""
        forks.notice()
        for hold in (*self.held.values(), *self.idle):
            hold.close()

    def renew(self) -> None:
        """Begin with nothing: in a forked child, where `handles` has closed the descriptors."""
        self._inherited += [(grant.owner(), grant) for grant in self.held]  # a child may be renewed twice
        for grant in self.held:
            grant.active, grant.inherited = False, True
        self.held, self.idle, self._mutex = {}, [], native.mutex()


def refuse_deadlock(path: str, identity: object, *, waits_in_loop: bool = False) -> None:
    """Refuse to wait for oneself without end.

    Args:
        path: the lock file, to name it.
        identity: what it is.
        waits_in_loop: the wait leaves the event loop running.

    Raises:
        LockDeadlockError: the caller holds the lock file through another object or call.
    """
    if is_held_here(identity, waits_in_loop=waits_in_loop):
        raise LockDeadlockError(
            f"lock {path!r} is held by this very thread or task, through another FileLock "
            "object or call: it would wait for itself for ever; share one object, or set a timeout"
        )


def is_held_here(identity: object, *, waits_in_loop: bool = False) -> bool:
    """Whether the caller would wait for itself for this lock file, through whatever object."""
    return any(
        hold.identity == identity and grant.blocks_caller(waits_in_loop=waits_in_loop)
        for other in _everything()
        for grant, hold in list(other.held.items())
    )


def free_orphans(identity: object) -> bool:
    """Free what owners left that have just ended, and whose end was not yet reported. Return whether there was any."""
    found = [
        (other, grant)
        for other in _everything()
        for grant, hold in list(other.held.items())
        if hold.identity == identity and grant.is_orphan
    ]
    for other, grant in found:
        other.free_orphan(grant)
    return bool(found)


_all: weakref.WeakValueDictionary[int, Ownership] = weakref.WeakValueDictionary()


def _everything() -> list[Ownership]:
    # `valuerefs` copies in one step: to iterate would fail while another thread makes a lock.
    return [one for ref in _all.valuerefs() if (one := ref()) is not None]
