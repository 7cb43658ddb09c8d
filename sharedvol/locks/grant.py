"""Who holds a lock, from the acquire to the release.

The rules:

- The object that ``acquire`` returned releases the lock from any thread or task. So does the end of a ``with lock:``,
  which may run in another thread than its start, as in a generator that a framework runs in a pool.
- ``lock.release()`` works only in the thread or task that acquired. The owner is the task that *called*
  ``acquire_async``, whichever task runs the coroutine: `asyncio.wait_for` (up to Python 3.11), `asyncio.gather` and
  task groups run it in another task.
- A lock is re-entrant for a task, and for a thread within the context (see `contextvars`) that acquired. A thread of a
  pool serves one request after another, each in its own context, and must not enter with the hold of another request.
- Without a release, a lock is freed when its owner has ended and the object that ``acquire`` returned was collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol

from sharedvol import forks, native
from sharedvol.locks.frames import CALLED, is_inside, may_end

RELEASED: Final = "released"
"""The hold of the block was freed by a release inside the block."""
INHERITED: Final = "inherited"
"""The hold of the block belongs to the parent of this forked child."""

Owner = object
"""A `threading.Thread` or an `asyncio.Task` that holds a lock."""


class Grant:
    """One hold of a lock.

    Attributes:
        active: the lock is not released yet.
        inherited: the hold belongs to the parent of this forked child.
        taken: how many acquires a release must still undo.
        blocks: the ``with`` blocks inside, as `block_of` names them.
        task: the task in which a thread acquired.
        objects: what ``acquire`` returned. Weak references instead of a count, which an interrupt in a finaliser could
            leave wrong.
    """

    __slots__ = ("__weakref__", "active", "blocks", "inherited", "objects", "owner", "taken", "task")

    def __init__(self, owner: Owner) -> None:
        self.owner: Callable[[], Owner | None] = weakref.ref(owner)
        self.task: Callable[[], Owner | None] = no_owner
        self.active, self.inherited = True, False
        self.taken = 0
        self.blocks: list[int] = []
        self.objects: list[weakref.ref[Acquired]] = []

    @property
    def depth(self) -> int:
        """How many releases and ends of blocks are still needed."""
        return self.taken + len(self.blocks)

    @property
    def is_orphan(self) -> bool:
        """Whether no caller can be inside and no object can release it."""
        if not self.active or not _has_ended(self.owner()) or self.has_objects:
            return False
        return not self.blocks or not may_end(self.blocks)

    @property
    def has_objects(self) -> bool:
        """Whether any of what ``acquire`` returned still exists."""
        return any(ref() is not None for ref in list(self.objects))

    def add(self, block: int | None, acquired: Acquired | None) -> None:
        """Count one more acquire."""
        if block is not None:
            self.blocks.append(block)
            return
        if acquired is None:
            self.taken += 1
            return
        self.objects.append(weakref.ref(acquired))
        self.taken += 1  # no call from here on, after which an interrupt could come
        acquired.grant = self

    def is_taken_by(self, acquired: Acquired) -> bool:
        """Return whether ``acquired`` may release the hold, which it may once. Call `undo` under the same mutex."""
        return acquired.grant is self and bool(self.taken)

    def drop(self, acquired: Acquired) -> None:
        """Forget ``acquired``, which was released or is being collected."""
        ref = weakref.ref(acquired)
        if ref in self.objects:
            self.objects.remove(ref)

    def undo(self, block: int | None, acquired: Acquired | None = None) -> list[int]:
        """Count one acquire less, that of ``acquired`` if given. Return the ``with`` block that this ends early."""
        if acquired is not None:
            self.taken -= 1
            acquired.grant = None
        elif block is not None and (block in self.blocks or CALLED in self.blocks):
            self.blocks.remove(block if block in self.blocks else CALLED)
        elif self.taken and (block is None or not self.blocks):
            self.taken -= 1
        elif self.blocks and (early := self.blocks.pop()) != CALLED:
            return [early]
        return []

    def forget_owner(self) -> None:
        """Forget the owner, which has ended."""
        self.owner = no_owner

    def end(self) -> None:
        """Mark the hold as freed."""
        self.active = False  # contexts that were inside forget it when they enter another hold

    def enter(self) -> None:
        """Put the calling context inside the hold."""
        if (task := calling_task()) is not None:
            self.task = weakref.ref(task)
        inside: tuple[weakref.ref[Grant], ...] = ()
        for ref in _inside.get():
            if (grant := ref()) is not None and grant.active:
                inside += (ref,)
        _inside.set((*inside, weakref.ref(self)))

    def is_reentered_by(self, owner: Owner) -> bool:
        """Return whether an acquire of ``owner``, the caller, is inside this hold."""
        if self.owner() is not owner:
            return False
        return isinstance(owner, asyncio.Task) or self.is_of_context() or self.is_around_caller()

    def is_of_context(self) -> bool:
        """Return whether the calling context is inside."""
        return weakref.ref(self) in _inside.get()

    def is_around_caller(self) -> bool:
        """Return whether the caller runs within one of the blocks, in any context."""
        return bool(self.blocks) and is_inside(self.blocks)

    @property
    def is_owners_alone(self) -> bool:
        """Whether only the owner can free it: no other thread can end its block, and no object can release it."""
        return any(block > CALLED for block in self.blocks) or not (self.blocks or self.has_objects)

    def blocks_caller(self, task: Owner | None = None) -> bool:
        """Return whether a wait of the caller for this hold would never end.

        Args:
            task: the waiting task, if the wait leaves the event loop running.
        """
        if not self.active:
            return False  # another thread is releasing it
        owner = self.owner()
        if self.is_around_caller():
            return True
        if task is not None:
            # A task that was made inside a plain `with` waits for its end, which may come.
            return owner is task or (self.is_of_context() and owner in owners_here() and self.task() in (task, None))
        if self.is_owners_alone and is_stopped_here(owner):
            return True
        if self.is_of_context():
            return owner in owners_here()
        # Another callback or task of this thread's loop has it, and cannot run while the thread waits.
        loop = asyncio._get_running_loop()
        if isinstance(owner, asyncio.Task):
            return loop is not None and owner.get_loop() is loop and not owner.done()
        return loop is not None and owner in owners_here()


class Acquired(Protocol):
    """The object that ``acquire`` returns: see `sharedvol.locks.held.AcquiredLock`."""

    grant: Grant | None


class Owned(Protocol):
    """A lock object, which has grants."""

    def owner_ended(self, owner: Owner | None) -> None:
        """Free what a thread or task left when it ended. ``owner`` is None if its object was collected."""


# Weak: a context lives long, and a lock that is dropped under its hold leaves no other trace.
_inside: ContextVar[tuple[weakref.ref[Grant], ...]] = ContextVar("sharedvol_locks", default=())


def owners_here() -> tuple[Owner, ...]:
    """Return the calling thread and, if there is one, the running task."""
    thread = threading.current_thread()
    task = calling_task()
    return (thread,) if task is None else (thread, task)


def is_stopped_here(owner: Owner | None) -> bool:
    """Return whether a wait of the caller also stops ``owner``: the same thread, or a greenlet that waits for it."""
    # Not by its class: gevent replaces that of threads, and the main thread has the one before.
    return owner is threading.current_thread() or getattr(owner, "ident", None) in native.waiting_greenlets()


def calling_task() -> Owner | None:
    """Return the running task. None outside of one."""
    return asyncio.current_task() if asyncio._get_running_loop() is not None else None


def of_caller(grants: Sequence[Grant], *, task_first: bool = False) -> Grant | None:
    """Return the caller's last grant.

    Args:
        grants: in the order in which they were granted.
        task_first: prefer grants of the running task to those of the thread.
    """
    for owner in owners_here()[:: -1 if task_first else 1] if grants else ():
        mine = None
        for grant in grants:
            if grant.owner() is owner and (
                mine is None or len(grants) == 1 or grant.is_of_context() >= mine.is_of_context()
            ):
                mine = grant
        if mine is not None:
            return mine
    return None


def of_block(
    grants: Sequence[Grant], block: int, ended_early: Callable[[int], str], *, task_first: bool = False
) -> Grant | None:
    """Return the grant of a ``with`` block that ends, in any thread.

    The same frame entered and leaves the block. A block that was entered by a call, as `contextlib.ExitStack` does, has
    no such frame. Then this returns a grant of the caller, or one that was entered elsewhere.

    Args:
        grants: in the order in which they were granted.
        block: the block, as `name_of` names it.
        ended_early: returns why a block has no hold: `RELEASED`, `INHERITED`, or "" if it has one.
        task_first: prefer grants of the running task to those of the thread.
    """
    for grant in reversed(grants):
        if block in grant.blocks:
            return grant
    ended = ended_early(block)
    if ended:
        # Only what the caller acquired again inside the block, never a hold of another thread.
        return of_caller([grant for grant in grants if grant.taken]) if ended == RELEASED else None
    called = [grant for grant in grants if CALLED in grant.blocks]
    return of_caller(called, task_first=task_first) or (called[-1] if called else of_caller(grants))


def watch_end(owner: Owner, owned: Owned) -> None:
    """Call ``owned.owner_ended(owner)`` when ``owner``, the caller, has ended."""
    if isinstance(owner, asyncio.Task):
        end = _tasks.get(owner)
        if end is None:
            # Weak: a task that is destroyed before it is done ends as well.
            end = _tasks[owner] = _End(weakref.ref(owner))
            owner.add_done_callback(_end_task)
    else:
        # gevent replaces the class, and what was made before belongs to threads of the system, not to greenlets.
        here = _ends.get(threading.local) or _ends.setdefault(threading.local, threading.local())
        end = getattr(here, "end", None)
        if end is None:
            # Not weak: the thread's own locals are the last that is dropped, after its object.
            end = here.end = _End(lambda: owner)
    end.watch(owned)


class _End:
    """Reports the end of a thread or task: it is collected with the thread or task, and its finaliser reports."""

    def __init__(self, owner: Callable[[], Owner | None]) -> None:
        self.owned: dict[int, weakref.ref[Owned]] = {}
        self.owner, self.pid = owner, os.getpid()

    def watch(self, owned: Owned) -> None:
        key, all_of_it = id(owned), self.owned
        ref = all_of_it.get(key)
        if ref is None or ref() is not owned:
            all_of_it[key] = weakref.ref(owned, lambda _: all_of_it.pop(key, None))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # an interrupt may have ended __init__; the interpreter may be ending
            if self.pid != os.getpid():
                return  # a forked child drops the threads of its parent, where they have not ended
            owner = self.owner()
            for ref in list(self.owned.values()):
                if (owned := ref()) is not None:
                    with contextlib.suppress(Exception):  # of a lock that was lost, which its owner did not ask
                        owned.owner_ended(owner)


def _end_task(task: asyncio.Task[object]) -> None:
    _tasks.pop(task, None)


def no_owner() -> None:
    """Return None, the owner of a grant whose owner has ended."""


def _has_ended(owner: Owner | None) -> bool:
    if isinstance(owner, asyncio.Task):
        return owner.done()
    if owner is threading.main_thread():
        return False  # it ends with the process, and says so when it begins to wait for the other threads
    return owner is None or (isinstance(owner, threading.Thread) and not owner.is_alive())


_ends: dict[type, Any] = {}  # the local variables of the threads, by the class of these
_tasks: weakref.WeakKeyDictionary[Owner, _End] = weakref.WeakKeyDictionary()


@forks.in_child
def _renew() -> None:
    _tasks.clear()
