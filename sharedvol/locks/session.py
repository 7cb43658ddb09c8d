"""What the locks that a server keeps have in common: one session holds, one thread at a time, no forked child.

The engines say how a session begins, ends and is dropped. What stays here is who holds how many times, whose
turn it is among the threads, and that an interrupt, wherever it strikes, leaves the lock held or free.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from sharedvol import forks, native
from sharedvol.errors import LockError, LockLostError, LockTimeout, NotLockedError
from sharedvol.locks.held import Held
from sharedvol.locks.holder import Holder
from sharedvol.locks.record import check_purpose
from sharedvol.locks.timeouts import DEFAULT, Default, check_timeout, limit_of
from sharedvol.printable import shown

_log = logging.getLogger(__name__)


class SessionLock:
    """Re-entrant for the thread that holds it; other threads that use the same object wait.

    Args:
        asked: the name as the caller says it.
        timeout: seconds to wait; None for ever.
        fenced: draw a token at each acquire, and write down who holds.
        purpose: what the holder says that it is for.

    Raises:
        ValueError: there is no name, ``timeout`` is none, or ``purpose`` is too long.
    """

    def __init__(self, asked: str, timeout: float | None, fenced: bool, purpose: str) -> None:
        if not asked:
            raise ValueError("a lock needs a name")
        check_timeout(timeout)
        check_purpose(purpose)
        self._asked, self._timeout, self._fenced, self._purpose = asked, timeout, fenced, purpose
        self._name: str | None = None
        self._inherited = 0
        self._forget()
        forks.track(self)

    def renew(self) -> None:
        """Begin without the lock: in a forked child."""
        self._inherited += self._depth if self._owner is threading.current_thread() else 0
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing: a new lock, or one in a forked child, which never speaks on its parent's connection."""
        self._with_greenlets = native.has_greenlets()
        # `with` on these, not on a Condition or a generator, whose Python code an interrupt could leave half-way.
        self._gate, self._talk = threading.RLock(), threading.Lock()
        self._turn = threading.Condition(self._gate)
        self._owner: threading.Thread | None = None  # not its number, which a later thread may have
        self._depth = 0
        self._token: int | None = None
        self._reset()

    # What an engine says.

    def _reset(self) -> None:
        """Have no session, without a word on one that there may be."""
        raise NotImplementedError

    def _begin(self, begun: float, limit: float | None) -> None:
        """Get the lock for a session, within ``limit`` seconds of ``begun`` by the monotonic clock."""
        raise NotImplementedError

    def _end(self) -> None:
        """Free it, and say that it is free by a depth of 0.

        Raises:
            LockLostError: it was lost before.
        """
        raise NotImplementedError

    def _let_go(self) -> None:
        """Keep nothing: no lock that may have been granted, no session of our own. Under `_talk`."""
        raise NotImplementedError

    # What is the same for all.

    @property
    def name(self) -> str | None:
        """The lock's name on the server; None before the first acquire."""
        return self._name

    @property
    def held(self) -> bool:
        """Whether this process acquired it and has not released it. Whether it was lost, `check` tells."""
        forks.notice()
        return self._depth > 0

    @property
    def token(self) -> int:
        """The fencing token of this hold: greater than that of every earlier hold of the same lock.

        Raises:
            LockError: the lock was not made with ``fenced=True``.
            NotLockedError: this process does not hold it.
        """
        if not self._fenced:
            raise LockError(f"lock {self._asked!r} has no tokens: make it with fenced=True")
        token = self._token
        if not self.held or token is None:
            raise self._not_held()
        return token

    def acquire(self, timeout: float | Default | None = DEFAULT) -> Held[Self]:
        """Take the lock, waiting for it on the server. To be undone by `release`, or a ``with`` on what is returned.

        Args:
            timeout: seconds, None for ever, 0 not at all; else as the lock was made.

        Raises:
            LockTimeout: it was not free in time.
            LockDeadlockError: the server saw that the holder waits for a lock of this session.
            LockUnsafeError: the server's lock would not exclude everybody.
            LockError: the name is not one that this server takes, it answered in no way that is known, or it
                refused the fencing token.
            DatabaseError: the server cannot be reached or refused.
        """
        forks.notice()
        native.refuse_eventlet()
        if self._with_greenlets != native.has_greenlets() and self._owner is None:
            self._forget()  # locks that were made before gevent patched would stop the greenlet that holds them as well
        limit = limit_of(timeout, self._timeout)
        begun = time.monotonic()
        held, me = Held(self), threading.current_thread()
        before = self._depth if self._owner is me else 0
        try:
            self._take_turn(me, limit)
            if before == 0:
                self._begin(begun, limit)
            self._depth = before + 1
            return held
        except BaseException:  # an interrupt too, wherever it strikes
            if self._owner is me:
                self._depth = before
                if before == 0:
                    self._drop()
            raise

    def release(self) -> None:
        """Undo one `acquire`; the last one frees the lock.

        In a forked child, which started without the lock, undoing its parent's acquire does nothing.

        Raises:
            NotLockedError: this thread does not hold it.
            LockLostError: it was lost before.
        """
        forks.notice()
        if self._depth == 0 and self._inherited:
            self._inherited -= 1
            return
        if not self.held:
            raise NotLockedError(f"lock {self._asked!r} is not held by this process: release it where it was acquired")
        if self._owner is not threading.current_thread():
            raise NotLockedError(f"lock {self._asked!r} is held by another thread: release it there")
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._end()
            self._drop()
        except BaseException:  # an interrupt too, also one of the first `_drop`
            if self._owner is threading.current_thread():
                self._drop()
            raise

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockLostError:
            if error is None:
                raise
            _log.warning("lock %r was lost before its block failed", self._name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name or self._asked!r} {'held' if self.held else 'not held'}>"

    def _not_held(self) -> NotLockedError:
        return NotLockedError(f"lock {self._asked!r} is not held by this process")

    def _take_turn(self, me: threading.Thread, limit: float | None) -> None:
        """Wait for the other threads that use this object."""
        with self._gate:
            wait = None if limit is None else min(limit, threading.TIMEOUT_MAX)
            if not self._turn.wait_for(lambda: self._owner is None or self._owner is me, wait):
                raise LockTimeout(self._name or self._asked, limit or 0.0)
            self._owner = me

    def _drop(self) -> None:
        """Keep neither session nor turn."""
        try:
            with self._talk:
                self._let_go()
        finally:
            with self._gate:
                self._turn.notify()
                self._token, self._depth, self._owner = None, 0, None


def described(who: str, holder: Holder) -> str:
    """``who`` in a message, with what the holder said of itself, made fit for a terminal."""
    if holder.replica:
        who += f", replica {shown(holder.replica)}"
    if holder.pid is not None:
        who += f", process {holder.pid}"
    return who + (f', for "{shown(holder.purpose)}"' if holder.purpose else "")
