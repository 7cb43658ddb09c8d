"""Compute a missing entry once: the protocol of its lock file, which exists only meanwhile.

A caller that finds no entry

1. tries the exclusive lock without waiting. If it is granted, the caller is the leader: it checks for the entry
   again, computes, puts the entry in its place, **removes the lock file, and only then** releases the lock.
2. Otherwise it waits until the leader has released the lock (see `sharedvol.cache.lock_wait`: all waiters wake at
   once, and create no file). Then it checks for the entry again.
3. If there is still no entry (the leader failed or was killed), it queues for the exclusive lock, and continues at 1.

At most one caller computes. A leader holds the exclusive lock of the file that has the name: `FileLock` checks the
name after the grant, and otherwise locks the file that has it then. Only the holder of that lock removes the file. So
no other caller can take the name of a leader's file, and until its removal every caller opens that very file and is
not granted the lock. A caller that is granted a lock later, of this file or the next, checks for the entry afterwards,
when the entry was already in place. So:

- Opened before the removal, granted after it: the file has lost its name. `FileLock` creates or opens the next one and
  is granted its lock. Then the check finds the entry.
- Opened after the removal: the same, with the next file.
- Opened between creation and lock by another caller: one of the two is granted the lock, the other waits. Creating the
  file gives no right to it before the grant.
- Refused, and the file is removed before the wait: there is nothing to wait for. The check finds the entry.
- Inode numbers are reused, but not while a process has the file open. So the old file is never mistaken for the new
  one.
- Killed before the entry is in place: the kernel frees the lock. The waiters find no entry, and queue.
- Killed after that, before the removal: the waiters find the entry. The file stays, and only a leader would read it.

No lock file stays behind: only a caller that wants to compute creates one, and a caller that is granted the lock
removes it. A caller that is not granted the lock of its own file was overtaken by one that is. `Cache.trim` removes
what killed processes leave, under its lock.

The steps are a generator, so that threads and asyncio tasks share them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sharedvol.cache import deadlock, lock_wait
from sharedvol.cache.entries import Absent
from sharedvol.errors import LockError, LockFileError, LockTimeout
from sharedvol.locks import FileLock


class LockUnavailableError(Exception):
    """The lock file cannot be created or locked. The cause says why."""


class ComputeTimeoutError(Exception):
    """The leader was not ready in time."""


class Missing(Protocol):
    """An entry that was not found."""

    def load(self) -> Any:
        """Return the entry's value, or an `Absent`."""

    def clear(self) -> None:
        """Remove what has the entry's name and is not an entry."""

    def store(self, computed: Any, /) -> Any:
        """Store what was computed. Return the entry's value."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Acquire a lock. The answer is whether it was granted in time, or a `Failure` if it cannot be locked."""

    lock: FileLock
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until no caller computes. The answer is whether that was in time."""

    path: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute the value. The answer is the value, or a `Failure`."""


@dataclass(frozen=True, slots=True)
class Call:
    """Do slow work on the disk. The answer is what it returned, or a `Failure`."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a computation. It is not thrown into the steps, because a generator replaces a StopIteration."""

    error: BaseException


Steps: TypeAlias = Generator[Acquire | Wait | Compute | Call, Any, Any]


def fill(path: str, entry: Missing, timeout: float | None) -> Steps:
    """Yield the steps to an entry that was not found.

    Args:
        path: the lock file of the entry.
        entry: the entry.
        timeout: seconds to wait for another leader.

    Returns:
        The value, or a `Failure`.

    Raises:
        ComputeTimeoutError: another caller computed and was not ready in time.
        LockDeadlockError: the wait would never end.
        LockUnavailableError: there can be no lock file. Nothing was computed.
    """
    end = None if timeout is None else time.monotonic() + timeout
    lock = FileLock(path, allow_network=True)  # `versioning.enter` has checked
    try:
        if not _granted((yield Acquire(lock, 0))):
            with deadlock.waiting(path):
                in_time = timeout != 0 and (yield Wait(path, _left(end)))
                found = entry.load()  # also after the timeout: the leader may have stored it before it was stopped
                if not isinstance(found, Absent):
                    return found
                if not in_time or not _granted((yield Acquire(lock, _left(end)))):
                    raise ComputeTimeoutError
        found = entry.load()
        if not isinstance(found, Absent):
            return found
        if found is Absent.DAMAGED:
            entry.clear()
        with deadlock.computing(path):
            computed = yield Compute()
        if isinstance(computed, Failure) or not lock.held:  # not held: a child that the computation forked
            return computed
        return (yield Call(lambda: entry.store(computed)))
    finally:
        _remove_and_release(lock, path)


def fill_unlocked(entry: Missing) -> Steps:
    """Yield the steps if there can be no lock file: each caller computes its own value."""
    computed = yield Compute()
    return computed if isinstance(computed, Failure) else (yield Call(lambda: entry.store(computed)))


def run(steps: Steps, compute: Callable[[], Any]) -> Any:
    """Take the steps in this thread."""
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            try:
                if isinstance(step, Acquire):
                    step.lock.acquire(step.timeout)
                    answer = True
                elif isinstance(step, Wait):
                    deadlock.refuse_own_thread(step.path)
                    answer = lock_wait.wait(step.path, step.timeout)
                else:
                    answer = compute() if isinstance(step, Compute) else step.work()
            except BaseException as error:
                answer = _answer(step, error)
    except StopIteration as end:
        result = end.value
    finally:
        steps.close()
    return _result(result)


async def run_async(steps: Steps, compute: Callable[[], Awaitable[Any]]) -> Any:
    """Take the steps in this task. It repeats `run` for its ``await``: the rest of both is in the steps."""
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            try:
                if isinstance(step, Acquire):
                    await step.lock.acquire_async(step.timeout)
                    answer = True
                elif isinstance(step, Wait):
                    answer = await lock_wait.wait_async(step.path, step.timeout)
                else:
                    answer = await (compute() if isinstance(step, Compute) else _in_thread(step.work))
            except BaseException as error:
                answer = _answer(step, error)
    except StopIteration as end:
        result = end.value
    finally:
        steps.close()
    return _result(result)


def _answer(step: Acquire | Wait | Compute | Call, error: BaseException) -> bool | Failure:
    """Return the answer to a step that raised ``error``, or raise it if it ends the steps."""
    if isinstance(step, Acquire) and isinstance(error, LockTimeout):
        return False
    if isinstance(step, Compute | Call) or (isinstance(step, Acquire) and isinstance(error, LockFileError)):
        return Failure(error)
    raise error


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Do the work in a new thread, because all threads of the event loop may be waiting for this very entry.

    A task that is cancelled meanwhile waits for the end of the work. Otherwise it would release the lock while the
    value is being stored, and the next caller would compute it again.

    Returns:
        What the work returned, or a `Failure`.
    """
    loop, ended, context = asyncio.get_running_loop(), asyncio.Event(), contextvars.copy_context()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(context.run(work))
        except BaseException as error:
            outcome.append(Failure(error))
        with contextlib.suppress(RuntimeError):  # the loop was closed, and its tasks with it
            loop.call_soon_threadsafe(ended.set)

    try:
        threading.Thread(target=run, name="sharedvol-cache storing").start()
    except RuntimeError:  # no thread can be started
        return work()
    cancelled: asyncio.CancelledError | None = None
    while not outcome:
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return outcome[0]


def sweep(path: str) -> bool:
    """Remove a lock file that no process holds. Return whether it existed and was free."""
    if not os.path.lexists(path):
        return False
    with alone(path) as granted:
        return granted


@contextlib.contextmanager
def alone(path: str) -> Iterator[bool]:
    """Hold an entry's lock for the block if it is free, without waiting. Remove its file at the end."""
    lock = FileLock(path, allow_network=True)  # `versioning.enter` has checked
    granted = False
    with contextlib.suppress(LockError):
        lock.acquire(0)
        granted = True
    try:
        yield granted
    finally:
        _remove_and_release(lock, path)


def _granted(answer: bool | Failure) -> bool:
    if isinstance(answer, Failure):
        raise LockUnavailableError from answer.error
    return answer


def _result(value: Any) -> Any:
    if isinstance(value, Failure):
        raise value.error
    return value


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _remove_and_release(lock: FileLock, path: str) -> None:
    """Remove the lock file and then unlock it, if it is held here."""
    if lock.held:
        # The check fails if the version was purged and came back: then the file belongs to another leader.
        with contextlib.suppress(OSError, LockError):
            lock.check()
            os.unlink(path)
        _release(lock)


def _release(lock: FileLock) -> None:
    with contextlib.suppress(LockError):  # lost, because its file was just removed
        lock.release()
