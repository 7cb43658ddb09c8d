"""Who holds: threads and tasks, and what becomes of it in a forked child."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import TYPE_CHECKING

from sharedvol import forks
from sharedvol.errors import LockDeadlockError, LockLostError

if TYPE_CHECKING:
    from sharedvol.locks.hold import Hold

Owner = object
"""Who holds: a `threading.Thread`, or an `asyncio.Task`."""


class Ownership:
    """The descriptors of one lock object: those that are locked, by owner, and one that is kept for the next use."""

    def __init__(self) -> None:
        self.held: dict[Owner, Hold] = {}
        self.idle: list[Hold] = []
        self._inherited: dict[Owner, int] = {}
        _all[id(self)] = self
        forks.track(self)

    def owner_here(self, *, task_first: bool = False) -> Owner | None:
        """The calling thread or running task, if it holds."""
        forks.notice()
        for owner in owners_here()[:: -1 if task_first else 1]:
            if owner in self.held:
                return owner
        return None

    def undo_inherited(self) -> bool:
        """In a forked child: whether this undoes what its parent acquired, which is nothing here."""
        forks.notice()
        # After a fork asyncio tells no current task, though the child may be leaving its parent's `async with`.
        tasks = [owner for owner in self._inherited if isinstance(owner, asyncio.Task)]
        for owner in (*owners_here(), *tasks):
            depth = self._inherited.get(owner, 0)
            if depth:
                self._inherited[owner] = depth - 1
                return True
        return False

    def free(self, owner: Owner) -> LockLostError | None:
        """Unlock what ``owner`` holds, whatever happens meanwhile, and say if it was lost."""
        hold = self.held[owner]
        try:
            del self.held[owner]
            lost = hold.release()
            self.keep(hold)
            return lost
        except BaseException:
            hold.close()
            self.held.pop(owner, None)
            raise

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

    def close(self) -> None:
        """Close everything, which frees what was locked."""
        forks.notice()
        for hold in (*self.held.values(), *self.idle):
            hold.close()

    def renew(self) -> None:
        """Begin with nothing: in a forked child, where `handles` has closed the descriptors."""
        self._inherited = {owner: hold.depth for owner, hold in self.held.items()}
        self.held, self.idle = {}, []


def owners_here() -> tuple[Owner, ...]:
    """The calling thread and, if one runs, the task."""
    thread = threading.current_thread()
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return (thread,)
    return (thread,) if task is None else (thread, task)


def is_held_here(identity: object) -> bool:
    """Whether the caller holds this lock file, through whatever object."""
    here = owners_here()
    for other in _everything():
        for owner in here:
            held = other.held.get(owner)
            if held is not None and held.identity == identity:
                return True
    return False


def refuse_deadlock(path: str, identity: object) -> None:
    """Refuse to wait for ever for oneself.

    Raises:
        LockDeadlockError: the caller holds the lock file through another object or call.
    """
    if is_held_here(identity):
        raise LockDeadlockError(
            f"lock {path!r} is held by this very thread or task, through another FileLock "
            "object or call: it would wait for itself for ever; share one object, or set a timeout"
        )


_all: weakref.WeakValueDictionary[int, Ownership] = weakref.WeakValueDictionary()


def _everything() -> list[Ownership]:
    # `valuerefs` copies in one step: to iterate would fail while another thread makes a lock.
    return [one for ref in _all.valuerefs() if (one := ref()) is not None]
