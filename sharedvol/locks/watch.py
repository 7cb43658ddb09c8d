"""Detect a lost lock soon, instead of at the next `check` or at the release."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

from sharedvol.errors import LockLostError, NotLockedError, SharedVolError
from sharedvol.locks.protocol import Lock

_log = logging.getLogger(__name__)

_JOIN_SECONDS: Final = 30.0  # a server that does not answer must not keep the block from ending


class Watch:
    """A ``with`` block during which a thread checks regularly that a lock was not lost.

    ::

        with lock, watch(lock, every=5.0, on_lost=lambda error: stop.set()):
            ...

    Put it inside the block of the lock, so that it ends before the release. A forked child has no such thread.
    """

    def __init__(self, lock: Lock, every: float, on_lost: Callable[[LockLostError], object]) -> None:
        if not 0 < every <= threading.TIMEOUT_MAX:
            raise ValueError(f"every: more than 0 seconds, not {every!r}")
        self._lock, self._every, self._on_lost = lock, every, on_lost
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self.lost: LockLostError | None = None
        """The error that was passed to the callback. None as long as the lock was not lost."""

    def __enter__(self) -> Watch:
        if self._thread is not None:
            raise RuntimeError("a watch is used once: make another")
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="sharedvol-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = self._thread
        if thread is None or self._pid != os.getpid():  # a forked child has neither the thread nor a usable event
            return
        self._stop.set()
        if thread is threading.current_thread():
            return
        thread.join(_JOIN_SECONDS)
        if thread.is_alive():
            _log.warning("%r: the question whether it is still held has had no answer for a long time", self._lock)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._lock.check()
            except LockLostError as error:
                self.lost = error
                self._tell(error)
                return
            except NotLockedError:
                continue  # between a release and the next acquire
            except SharedVolError as error:
                _log.warning("cannot tell whether %r is still held: %s", self._lock, error)

    def _tell(self, error: LockLostError) -> None:
        try:
            self._on_lost(error)
        except Exception:
            _log.exception("%r was lost, and the callback that was told failed", self._lock)


def watch(lock: Lock, every: float = 5.0, *, on_lost: Callable[[LockLostError], object]) -> Watch:
    """Call ``on_lost`` once, with the `LockLostError`, when ``lock`` is found to be lost.

    During the ``with`` a thread calls ``lock.check()``, and ``on_lost`` runs in that thread. A loss is detected at most
    ``every`` seconds and the duration of one check after the server or the kernel knows of it. Work that continues
    until then is done without the lock, so protect it by a fencing token.

    Args:
        lock: a lock of any engine, held during the block, or held from time to time.
        every: seconds between two checks.
        on_lost: the function to call. An exception that it raises is logged.

    Raises:
        ValueError: ``every`` is not greater than 0.
    """
    return Watch(lock, every, on_lost)
