"""The common part of locks on servers: one session holds, one thread at a time, and no forked child.

The engines start, end and drop a session. This module counts the holds, gives the threads their turns, and makes sure
that an interrupt at any moment leaves the lock held or free.
"""

from __future__ import annotations

import _thread
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from sharedvol import forks, native
from sharedvol.errors import LockDeadlockError, LockError, LockLostError, LockTimeout, NotLockedError
from sharedvol.locks.arguments import DEFAULT, Default, check_purpose, check_timeout, limit_of
from sharedvol.locks.frames import block_of, name_of
from sharedvol.locks.grant import INHERITED, RELEASED, Grant, of_block, watch_end
from sharedvol.locks.held import AcquiredLock

_log = logging.getLogger(__name__)


class ServerLock:
    """A lock on a server, re-entrant for the thread that holds it. Other threads that use the same object wait.

    Args:
        asked: the name as the caller gave it.
        timeout: seconds to wait. None waits indefinitely.
        fenced: whether each acquire draws a token and records the holder.
        purpose: what the lock is held for.

    Raises:
        ValueError: ``asked`` is empty, ``timeout`` is invalid, or ``purpose`` is too long.
    """

    def __init__(self, asked: str, timeout: float | None, fenced: bool, purpose: str) -> None:
        if not asked:
            raise ValueError("a lock needs a name")
        check_timeout(timeout)
        check_purpose(purpose)
        self._asked, self._timeout, self._fenced, self._purpose = asked, timeout, fenced, purpose
        self._name: str | None = None
        self._inherited = 0
        self._ended_early: list[int] = []  # blocks
        self._inherited_blocks: list[int] = []
        self._forget()
        forks.track(self)

    def renew(self) -> None:
        """Start without the lock in a forked child."""
        grant = self._grant
        if grant is not None:
            grant.active, grant.inherited = False, True
            self._inherited += grant.depth if grant.owner() is threading.current_thread() else 0
            self._inherited_blocks += grant.blocks
        self._forget()

    def _forget(self) -> None:
        """Start a new lock, or one in a forked child, which never uses its parent's connection."""
        self._with_greenlets = native.has_greenlets()
        # `with` on these, not on a Condition or a generator, whose Python code an interrupt could leave half-way.
        self._gate, self._talk = threading.RLock(), threading.Lock()
        self._turn = threading.Condition(self._gate)
        self._mutex = native.mutex()  # of what the grant counts
        self._grant: Grant | None = None  # of the thread that has the turn
        self._granted = False
        self._token: int | None = None
        self._reset()

    # The engine's part.

    def _reset(self) -> None:
        """Forget the session, without sending anything on it."""
        raise NotImplementedError

    def _begin(self, begun: float, limit: float | None) -> None:
        """Acquire the lock for a session, within ``limit`` seconds of ``begun`` by the monotonic clock."""
        raise NotImplementedError

    def _end(self) -> None:
        """Release the lock on the server, and call `_freed` at once.

        Raises:
            LockLostError: the lock was lost before.
        """
        raise NotImplementedError

    def _let_go(self) -> None:
        """Release a lock that may have been granted, and close the own session. Called under `_talk`."""
        raise NotImplementedError

    # The common part.

    @property
    def name(self) -> str | None:
        """The lock's name on the server; None before the first acquire."""
        return self._name

    @property
    def held(self) -> bool:
        """Whether this process acquired the lock and has not released it. Call `check` to find out if it was lost."""
        forks.notice()
        return self._granted

    @property
    def token(self) -> int:
        """The fencing token of this hold: greater than that of every earlier hold of the same lock.

        Raises:
            LockError: the lock was not made with ``fenced=True``.
            NotLockedError: this process does not hold the lock.
        """
        if not self._fenced:
            raise LockError(f"lock {self._asked!r} has no tokens: make it with fenced=True")
        token = self._token
        if not self.held or token is None:
            raise self._not_held()
        return token

    def acquire(self, timeout: float | Default | None = DEFAULT) -> AcquiredLock[Self]:
        """Take the lock, waiting for it on the server.

        The returned object releases the lock from any thread: use ``with`` on it, or call its ``release``. The lock's
        own `release` undoes the last acquire of the calling thread.

        Args:
            timeout: seconds to wait. None waits indefinitely, 0 does not wait. The default is the lock's own.

        Raises:
            LockTimeout: the lock was not free in time.
            LockDeadlockError: the server reports that the holder waits for a lock of this session. Or another task or
                callback of this thread's event loop holds the lock, and cannot run while the thread waits.
            LockUnsafeError: the server's lock would not exclude all others.
            LockError: the server does not accept the name, gave an unknown answer, or refused the fencing token.
            DatabaseError: the server cannot be reached, or refused the request.
        """
        acquired = AcquiredLock(self)
        self._acquire(timeout, None, acquired)
        return acquired

    def _acquire(self, timeout: float | Default | None, block: int | None, acquired: AcquiredLock[Self] | None) -> None:
        forks.notice()
        native.refuse_eventlet()
        if self._with_greenlets != native.has_greenlets() and self._grant is None:
            self._forget()  # locks that were made before gevent patched would stop the greenlet that holds them as well
        limit = limit_of(timeout, self._timeout)
        begun, me = time.monotonic(), threading.current_thread()
        with self._mutex:
            grant = self._grant
            if grant is not None and self._granted and grant.active and grant.is_reentered_by(me):
                grant.add(block, acquired)
                return
        grant = Grant(me)
        watch_end(me, self)
        try:
            self._take_turn(grant, limit)
            self._begin(begun, limit)
            grant.add(block, acquired)
            grant.enter()
            self._granted = True
        except BaseException:  # an interrupt too, wherever it strikes
            if self._grant is grant:
                self._drop(grant)
            raise

    def release(self) -> None:
        """Undo one `acquire`. The last one releases the lock.

        A forked child starts without the lock, so undoing an acquire of its parent does nothing there.

        Raises:
            NotLockedError: this thread does not hold the lock. The object that `acquire` returned releases it anywhere.
            LockLostError: the lock was lost before.
        """
        forks.notice()
        grant = self._grant if self._granted else None
        if grant is not None and not self._is_holder():
            raise NotLockedError(
                f"lock {self._asked!r} is held by another thread: release it there; to release it here, keep what "
                "acquire() returned and release that, or use `with lock:`"
            )
        self._release(grant)

    def _release(
        self, grant: Grant | None, block: int | None = None, acquired: AcquiredLock[Any] | None = None
    ) -> None:
        if grant is None:
            if self._inherited:
                self._inherited -= 1
                return
            raise NotLockedError(f"lock {self._asked!r} is not held by this process: release it where it was acquired")
        last = False
        try:
            with self._mutex:
                if not grant.active or not (acquired is None or grant.is_taken_by(acquired)):
                    raise NotLockedError(f"lock {self._asked!r} is not held by this any more: release it once")
                last = grant.depth <= 1
                self._ended_early += grant.undo(block, acquired)
                grant.active = not last
                if acquired is not None and not last:
                    grant.drop(acquired)
            if last:
                self._end()
                self._drop(grant)
            else:
                self._free_orphan(grant)
        except BaseException:  # an interrupt too, also one of the first `_drop`
            if last:
                self._drop(grant)
            raise

    def _release_acquired(self, acquired: AcquiredLock[Self]) -> None:
        forks.notice()
        grant = acquired.grant
        if grant is not None and grant.inherited:
            self._inherited -= bool(self._inherited)
            return
        if grant is None:
            raise NotLockedError(f"lock {self._asked!r} is not held by this any more: release it once")
        self._release(grant, acquired=acquired)

    def owner_ended(self, owner: object | None) -> None:
        """Free what a thread left when it ended. ``owner`` is None if its object was collected."""
        forks.notice()
        grant = self._grant
        if grant is not None and grant.owner() in (owner, None):
            grant.forget_owner()
            self._free_orphan(grant)

    def _free_orphan(self, grant: Grant) -> None:
        if grant.is_orphan and grant is self._grant:
            if sys.is_finalizing():
                return  # the server frees it when the process ends
            # Not in this thread: garbage collection may have interrupted its use of this lock or of `threading`.
            # `Thread.start` would wait for the new thread, and for a mutex of `threading`.
            _thread.start_new_thread(self._drop, (grant,))

    def __enter__(self) -> Self:
        self._acquire(DEFAULT, block_of(sys._getframe(1)), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        forks.notice()
        try:
            grant, block = self._grant, name_of(sys._getframe(1))
            # A hold whose release has begun counts as freed.
            held = [grant] if grant is not None and self._granted and grant.active else []
            self._release(of_block(held, block, self._has_ended_early), block)
        except LockLostError as lost:
            self._say_lost(lost, kind)

    def _has_ended_early(self, block: int) -> str:
        """What left a block that ends without a hold: `RELEASED`, `INHERITED` or ""."""
        for blocks, how in ((self._ended_early, RELEASED), (self._inherited_blocks, INHERITED)):
            if block in blocks:
                blocks.remove(block)
                return how
        return ""

    def _say_lost(self, lost: LockLostError, kind: type[BaseException] | None) -> None:
        if kind is None:
            raise lost
        _log.warning("lock %r was lost before its block failed", self._name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name or self._asked!r} {'held' if self.held else 'not held'}>"

    def _not_held(self) -> NotLockedError:
        return NotLockedError(f"lock {self._asked!r} is not held by this process")

    def _take_turn(self, grant: Grant, limit: float | None) -> None:
        """Wait until no other thread uses this object."""
        with self._gate:
            before = self._grant
            if limit is None and before is not None and before.blocks_caller():
                raise LockDeadlockError(
                    f"lock {self._asked!r} is held by another task or callback of this thread's event loop, which "
                    "cannot run while the thread waits: wait in another thread, or set a timeout"
                )
            wait = None if limit is None else min(limit, threading.TIMEOUT_MAX)
            if not self._turn.wait_for(lambda: self._grant is None, wait):
                raise LockTimeout(self._name or self._asked, limit or 0.0)
            self._grant = grant

    def _is_holder(self) -> bool:
        """Return whether the calling thread acquired the lock."""
        grant = self._grant
        return grant is not None and grant.owner() is threading.current_thread()

    def _freed(self) -> None:
        """Record that the server released the lock, before a `check` in another thread would take it for lost."""
        self._granted = False

    def _drop(self, grant: Grant) -> None:
        """Give up the session and the turn of ``grant``, unless another call has done that."""
        try:
            with self._talk:
                if self._grant is not grant:
                    return
                self._let_go()
        finally:
            with self._gate:
                if self._grant is grant:
                    self._turn.notify_all()
                    self._token, self._granted, self._grant = None, False, None
                    grant.end()
