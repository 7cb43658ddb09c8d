"""One computes, the rest wait and read: the protocol of a key's lock file, which exists only meanwhile.

Who finds no entry

1. tries the lock, exclusive, without waiting. Free: it is the computer. It looks again, computes, puts the entry
   in its place, **removes the lock file, and only then** lets go.
2. Else it waits until the computer has released it (see `sharedvol.cache.lock_wait`: all waiters are woken at once, and
   make no file). It looks again.
3. Still no entry (the computer failed or was killed): it queues for the exclusive lock, and goes on as in 1.

At most one computes. A computer holds the exclusive lock of the file that has the name (`FileLock` sees to that: it
looks at the name after it was granted, and takes the file that has it then). Only who holds the lock of the file that
has the name removes it, so the name of a computer's file is taken by nobody but himself, and until then whoever comes
opens that very file and is not granted it. Whoever is granted a lock later, of this file or the next, looks for the
entry after that, and it was in place before. So:

- Opened before the removal, granted after it: the file has lost its name. `FileLock` makes or opens the next one, is
  granted that, and looks: the entry is there.
- Opened after the removal: the next file, the same.
- Opened between creation and lock of another: one of the two is granted, the other waits. Who creates the file has no
  right to it before it is granted.
- Refused, and the file is gone before it can be waited for: there is nothing to wait for. It looks.
- Inode numbers are used again, but not while somebody has the file open, so the old file is never taken for the new.
- Killed before the entry: the kernel frees the lock; those who wait find no entry, and queue.
- Killed after the entry, before the removal: they find it. The file stays, and nobody but a computer looks at it.

No lock file stays: only who wants to compute makes one, and whoever is granted one removes it; who is not granted the
one that he made has been overtaken by another who is. What killed processes leave, `Cache.trim` removes, under its
lock.

The steps are a generator, so that threads and asyncio tasks go through the same ones.
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
from typing import Any, TypeAlias

from sharedvol.cache import deadlock as chain
from sharedvol.cache import lock_wait as waiting
from sharedvol.cache.entries import Absent
from sharedvol.errors import LockError, LockFileError, LockTimeout
from sharedvol.locks import FileLock


class Unlockable(Exception):
    """The lock file cannot be made or locked: its cause says why."""


class OutOfTime(Exception):
    """The computer was not ready in time."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take a lock: sent back is whether it was granted in time, or a `Failure` where it cannot be locked."""

    lock: FileLock
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until nobody computes: sent back is whether that was in time."""

    path: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute the value: sent back is the value, or a `Failure`."""


@dataclass(frozen=True, slots=True)
class Call:
    """Do something that takes time on the disk: sent back is what it returned, or a `Failure`."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a computation. Not thrown into the steps: a StopIteration would not come through."""

    error: BaseException


Steps: TypeAlias = Generator[Acquire | Wait | Compute | Call, Any, Any]


def single_flight(
    path: str,
    look: Callable[[], Any],
    clear: Callable[[], object],
    keep: Callable[[Any], Any],
    timeout: float | None,
) -> Steps:
    """The steps to an entry that was not there.

    Args:
        path: the lock file of the entry.
        look: the entry's value, or an `Absent`.
        clear: removes what is in its place and is no entry.
        keep: stores what was computed, and gives the entry's value.
        timeout: seconds to wait for another computer.

    Returns:
        The value, or a `Failure`.

    Raises:
        OutOfTime: another one computed and was not ready in time.
        LockDeadlockError: it would have been waited for for ever.
        Unlockable: there can be no lock file. Nothing was computed.
    """
    end = None if timeout is None else time.monotonic() + timeout
    lock = FileLock(path, allow_network=True)  # `version.enter` has checked
    try:
        if not _granted((yield Acquire(lock, 0))):
            with chain.waiting(path):
                in_time = timeout != 0 and (yield Wait(path, _left(end)))
                found = look()  # also when the time is over: the computer may be stopped, and have stored it before
                if not isinstance(found, Absent):
                    return found
                if not in_time or not _granted((yield Acquire(lock, _left(end)))):
                    raise OutOfTime
        found = look()
        if not isinstance(found, Absent):
            return found
        if found is Absent.DAMAGED:
            clear()
        with chain.computing(path):
            computed = yield Compute()
        if isinstance(computed, Failure) or not lock.held:  # a child that was forked by the computation
            return computed
        return (yield Call(lambda: keep(computed)))
    finally:
        _let_go(lock, path)


def unlocked(keep: Callable[[Any], Any]) -> Steps:
    """The steps where there can be no lock file: everyone computes for himself."""
    computed = yield Compute()
    return computed if isinstance(computed, Failure) else (yield Call(lambda: keep(computed)))


def run(steps: Steps, compute: Callable[[], Any]) -> Any:
    """Go through the steps in this thread."""
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, Acquire):
                try:
                    step.lock.acquire(step.timeout)
                    answer = True
                except LockTimeout:
                    answer = False
                except LockFileError as error:
                    answer = Failure(error)
            elif isinstance(step, Wait):
                chain.refuse_own_thread(step.path)
                answer = waiting.wait(step.path, step.timeout)
            else:
                try:
                    answer = compute() if isinstance(step, Compute) else step.work()
                except BaseException as error:
                    answer = Failure(error)
    except StopIteration as end:
        result = end.value
    finally:
        steps.close()
    return _result(result)


async def run_async(steps: Steps, compute: Callable[[], Awaitable[Any]]) -> Any:
    """Go through the steps in this task."""
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, Acquire):
                try:
                    await step.lock.acquire_async(step.timeout)
                    answer = True
                except LockTimeout:
                    answer = False
                except LockFileError as error:
                    answer = Failure(error)
            elif isinstance(step, Wait):
                answer = await waiting.wait_async(step.path, step.timeout)
            else:
                try:
                    answer = await (compute() if isinstance(step, Compute) else _in_thread(step.work))
                except BaseException as error:
                    answer = Failure(error)
    except StopIteration as end:
        result = end.value
    finally:
        steps.close()
    return _result(result)


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Do it in a thread of its own: those of the event loop may all be waiting for this very entry.

    A task that is cancelled meanwhile ends with it: else it would let go of the lock while the value is being stored,
    and the next one would compute it again.

    Returns:
        What it returned, or a `Failure`.
    """
    loop, ended, context = asyncio.get_running_loop(), asyncio.Event(), contextvars.copy_context()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(context.run(work))
        except BaseException as error:
            outcome.append(Failure(error))
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
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
    """Remove a lock file that nobody holds. Whether it was there, and free."""
    if not os.path.lexists(path):
        return False
    with alone(path) as granted:
        return granted


@contextlib.contextmanager
def alone(path: str) -> Iterator[bool]:
    """Hold an entry's lock for the block if it is free, without waiting; its file is gone at the end."""
    lock = FileLock(path, allow_network=True)  # `version.enter` has checked
    granted = False
    with contextlib.suppress(LockError):
        lock.acquire(0)
        granted = True
    try:
        yield granted
    finally:
        _let_go(lock, path)


def _granted(answer: bool | Failure) -> bool:
    if isinstance(answer, Failure):
        raise Unlockable from answer.error
    return answer


def _result(value: Any) -> Any:
    if isinstance(value, Failure):
        raise value.error
    return value


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _let_go(lock: FileLock, path: str) -> None:
    """Remove the lock file and unlock it, if it is held here."""
    if lock.held:
        # Lost where a version was purged and came back meanwhile: the file of that name is another computer's.
        with contextlib.suppress(OSError, LockError):
            lock.check()
            os.unlink(path)
        _release(lock)


def _release(lock: FileLock) -> None:
    with contextlib.suppress(LockError):  # its file was removed under it: by ourselves
        lock.release()
