"""Who holds a lock: from the acquire that is granted it to the release that frees it.

The rule:

- What ``acquire`` returned releases it, from any thread or task. So does the end of a ``with lock:``, which may run in
  another thread than its beginning, as in a generator that a framework drives from a pool.
- ``lock.release()`` is for the thread or task that acquired. A task acquires what it *called* ``acquire_async`` for,
  whichever task runs it: `asyncio.wait_for` (to Python 3.11), `asyncio.gather` and task groups use others.
- It is re-entrant for a task, and for a thread within the context (see `contextvars`) that acquired: a thread of a pool
  works for one request after another, each in a context of its own, and one must not enter with the hold of another.
- It is freed without a release when its owner has ended and what ``acquire`` returned was collected, not before.
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
"""A block whose hold a release inside has freed."""
INHERITED: Final = "inherited"
"""A block whose hold is the parent's, in a forked child."""

Owner = object
"""Who holds: a `threading.Thread`, or an `asyncio.Task`."""


class Grant:
    """One hold of a lock.

    Attributes:
        active: it is not freed yet.
        inherited: it is the parent's, in a forked child.
        taken: how many acquires are to be undone by a release.
        blocks: the ``with`` blocks inside, each as `block_of` names it.
        task: the one in which a thread acquired.
        objects: what ``acquire`` returned. Weak, not counted: no interrupt in a finaliser can make a count wrong.
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
        """How many releases and ends of blocks are to come."""
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
        """Whether ``acquired`` may release it: once. To be asked and followed by `undo` in one turn."""
        return acquired.grant is self and bool(self.taken)

    def drop(self, acquired: Acquired) -> None:
        """``acquired`` was released or is being collected."""
        ref = weakref.ref(acquired)
        if ref in self.objects:
            self.objects.remove(ref)

    def undo(self, block: int | None, acquired: Acquired | None = None) -> list[int]:
        """Count one acquire less, that of ``acquired`` if given. Return the ``with`` that this ends early."""
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
        """Its owner has ended."""
        self.owner = no_owner

    def end(self) -> None:
        """It is freed."""
        self.active = False  # the contexts that were inside forget it as they enter another

    def enter(self) -> None:
        """The calling context is inside from here on."""
        if (task := calling_task()) is not None:
            self.task = weakref.ref(task)
        inside: tuple[weakref.ref[Grant], ...] = ()
        for ref in _inside.get():
            if (grant := ref()) is not None and grant.active:
                inside += (ref,)
        _inside.set((*inside, weakref.ref(self)))

    def is_reentered_by(self, owner: Owner) -> bool:
        """Whether an acquire of ``owner``, which is calling, is inside this hold."""
        if self.owner() is not owner:
            return False
        return isinstance(owner, asyncio.Task) or self.is_of_context() or self.is_around_caller()

    def is_of_context(self) -> bool:
        """Whether the calling context is inside."""
        return weakref.ref(self) in _inside.get()

    def is_around_caller(self) -> bool:
        """Whether the caller is called from within one of its blocks, in whatever context."""
        return bool(self.blocks) and is_inside(self.blocks)

    @property
    def is_owners_alone(self) -> bool:
        """Whether no other thread than its owner can free it: none can end its block, and no object releases it."""
        return any(block > CALLED for block in self.blocks) or not (self.blocks or self.has_objects)

    def blocks_caller(self, task: Owner | None = None) -> bool:
        """Whether to wait for it here would never end.

        Args:
            task: for which the wait is, if it leaves the event loop running.
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
    """What ``acquire`` returns: see `sharedvol.locks.held.AcquiredLock`."""

    grant: Grant | None


class Owned(Protocol):
    """What has grants."""

    def owner_ended(self, owner: Owner | None) -> None:
        """A thread or task has ended, None if it exists no more: free what it held and no caller can free any more."""


# Weak: a context lives long, and a lock that is dropped under its hold leaves no other trace.
_inside: ContextVar[tuple[weakref.ref[Grant], ...]] = ContextVar("sharedvol_locks", default=())


def owners_here() -> tuple[Owner, ...]:
    """The calling thread and, if one runs, the task."""
    thread = threading.current_thread()
    task = calling_task()
    return (thread,) if task is None else (thread, task)


def is_stopped_here(owner: Owner | None) -> bool:
    """Whether a wait of the caller stops ``owner`` as well: the same thread, or a greenlet that waits for this one."""
    # Not by its class: gevent replaces that of threads, and the main thread has the one before.
    return owner is threading.current_thread() or getattr(owner, "ident", None) in native.waiting_greenlets()


def calling_task() -> Owner | None:
    """The running task; None outside of one."""
    return asyncio.current_task() if asyncio._get_running_loop() is not None else None


def of_caller(grants: Sequence[Grant], *, task_first: bool = False) -> Grant | None:
    """The last of the caller's.

    Args:
        grants: in the order in which they were granted.
        task_first: the running task's before the thread's.
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
    """That of a ``with`` block which ends, in whatever thread.

    Its frame entered and leaves it. A block that was entered by a call, as `contextlib.ExitStack` does, has no such
    frame: then the caller's own, or one that was entered elsewhere.

    Args:
        grants: in the order in which they were granted.
        block: the address of the frame that leaves it.
        ended_early: whether it has nothing any more: `RELEASED`, `INHERITED` or "".
        task_first: the running task's before the thread's.
    """
    for grant in reversed(grants):
        if block in grant.blocks:
            return grant
    ended = ended_early(block)
    if ended:
        # Not another's: at most what its caller acquired again inside.
        return of_caller([grant for grant in grants if grant.taken]) if ended == RELEASED else None
    called = [grant for grant in grants if CALLED in grant.blocks]
    return of_caller(called, task_first=task_first) or (called[-1] if called else of_caller(grants))


def watch_end(owner: Owner, owned: Owned) -> None:
    """Call ``owned.owner_ended(owner)`` when ``owner``, which is calling, has ended."""
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
    """What is to be done at the end of a thread or task. Dies with it, and does it then."""

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
    """Return the owner that exists no more."""


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
