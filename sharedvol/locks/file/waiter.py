"""A wait in the kernel that its owner can walk away from.

A thread blocks in the kernel for the lock, on a descriptor of its own. Its owner waits for a notice, for as long as
it wants. When the owner walks away, the thread cannot be interrupted: that would need a signal, which a library must
not use. So the thread is parked until the lock is granted, releases it at once and ends. The next wait for the same
lock takes over a parked thread and its place in the kernel's queue. So there are never more threads than there were
waiters at one time.
"""

from __future__ import annotations

from collections.abc import Callable

from sharedvol import forks, native
from sharedvol.locks.backend import Handle, LockBackend
from sharedvol.locks.file.fork import close_tracked

Key = tuple[object, bool]


class Waiter:
    """A thread that waits for one lock. Made by `wait_for`."""

    def __init__(
        self,
        backend: LockBackend,
        handle: Handle,
        identity: object,
        path: str,
        shared: bool,
        notify: Callable[[], None],
    ) -> None:
        self.handle = handle
        self.marked = -1  # what its owner knows the handle by
        self.key: Key = (identity, shared)
        self.error: Exception | None = None
        self._backend, self._path, self._shared = backend, path, shared
        self._notify = notify
        self._mutex = native.mutex()
        self._abandoned = self._finished = self._has_first = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started (the interpreter is ending, or a process limit).
        """
        # A wait that was abandoned must not keep the process from ending.
        native.start_thread(self._run, f"sharedvol-lock {self._path}")

    def abandon(self) -> bool:
        """Walk away. Return False if the wait has ended: then the caller has the handle and the lock."""
        with self._mutex:
            if self._finished:
                return self._abandoned  # ended after it was abandoned: it has closed the handle
            self._abandoned = True
            if self._has_first:
                # It waits for flock and has the fcntl lock: an abandoned wait must keep no process out.
                self._backend.unlock_first(self.handle)
                self._has_first = False
            return True

    def adopt(self, notify: Callable[[], None]) -> bool:
        """Take over an abandoned wait. Return False if it ended meanwhile, or another caller was first."""
        with self._mutex:
            if self._finished or not self._abandoned:
                return False
            self._abandoned, self._notify = False, notify
            return True

    def _run(self) -> None:
        try:
            while not self._attempt():
                pass
        except Exception as error:  # whatever it is, the owner waits for the end
            with self._mutex:
                self.error = error
                self._finish()

    def _attempt(self) -> bool:
        self._backend.wait_first(self.handle, self._path, self._shared)
        with self._mutex:
            if self._abandoned:
                return self._finish()
            self._has_first = True
        self._backend.wait_second(self.handle, self._path, self._shared)
        with self._mutex:
            if self._has_first or self._abandoned:
                return self._finish()
            # Abandoned and adopted between the two locks, so the first was released: start again in order.
            self._backend.unlock(self.handle)
            return False

    def _finish(self) -> bool:
        """End the wait: hand over to the owner, or close the handle of an abandoned wait. Called under the mutex."""
        self._finished = True
        if self._abandoned:
            _unpark(self)
            close_tracked(self._backend, self.handle)
            _waiting.discard(self)  # it may have had the lock until now
        else:
            _waiting.discard(self)
            self._notify()
        return True


_waiting: set[Waiter] = set()
_parked: dict[Key, list[Waiter]] = {}
# Re-entrant: a signal handler may wait for a lock while the main thread is in here.
_parked_mutex = native.mutex()


def wait_for(
    backend: LockBackend,
    handle: Handle,
    identity: object,
    path: str,
    shared: bool,
    notify: Callable[[], None],
    keep: Callable[[Waiter | None], None],
) -> None:
    """Wait for the lock in a thread; ``notify`` is called there when it ends, granted or in error.

    The handle belongs to the waiter until then. A parked waiter is taken over where there is one, and
    the handle closed. ``keep`` is called with the waiter before it may be granted anything.

    Raises:
        RuntimeError: no thread can be started; the handle is the caller's again.
    """
    while True:
        with _parked_mutex:
            parked = _parked.get((identity, shared))
            waiter = parked.pop() if parked else None
            if parked is not None and not parked:
                del _parked[identity, shared]
        if waiter is None:
            break
        keep(waiter)
        if waiter.adopt(notify):
            close_tracked(backend, handle)
            return
    waiter = Waiter(backend, handle, identity, path, shared, notify)
    _waiting.add(waiter)
    keep(waiter)
    try:
        waiter.start()
    except RuntimeError:
        keep(None)
        _waiting.discard(waiter)
        raise
    except BaseException:
        keep(None)
        # A signal handler raised while the thread was starting. The thread may run, so it is abandoned.
        if not waiter.abandon():
            close_tracked(backend, handle)
        raise


def walk_away(waiter: Waiter) -> bool:
    """Park a waiter. Return False if its wait has ended: then the caller has the handle and the lock."""
    if not waiter.abandon():
        return False
    with _parked_mutex:
        parked = _parked.get(waiter.key, [])
        # Not if it ended meanwhile, and has closed its descriptor; nor twice, when a signal handler raised
        # after the first time: two would take it over, and both believe that they have the lock.
        if not waiter._finished and waiter not in parked:
            _parked.setdefault(waiter.key, []).append(waiter)
    return True


def _unpark(waiter: Waiter) -> None:
    """Forget a parked waiter that has ended. Without this, a lock that is never waited for again would keep it."""
    with _parked_mutex:
        parked = _parked.get(waiter.key, [])
        if waiter in parked:
            parked.remove(waiter)
            if not parked:
                del _parked[waiter.key]


def waiting() -> int:
    """Return how many threads wait in the kernel, including parked ones."""
    return len(_waiting)


@forks.in_child
def _renew() -> None:
    global _parked_mutex
    _parked_mutex = native.mutex()
    _waiting.clear()  # their threads stayed in the parent; `fork` closes the descriptors
    _parked.clear()
