"""The permits of a semaphore, the queue for them, and the attempt to get one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from sharedvol.errors import LockDeadlockError, LockTimeout
from sharedvol.locks.file import FileLock, linux
from sharedvol.locks.file.fencing import FencingFiles
from sharedvol.locks.file.hold import Hold
from sharedvol.locks.file.owners import OwnerTable, is_held_here
from sharedvol.locks.grant import Grant, Owner
from sharedvol.network import NetworkPolicy


class Permit(OwnerTable):
    """One permit: its lock file, and the descriptors that this process has of it."""

    def __init__(self, path: str, mode: int, purpose: str, network: NetworkPolicy) -> None:
        super().__init__()
        self.path, self._mode, self._purpose, self._network = path, mode, purpose, network

    def take(self) -> Hold:
        """Return a descriptor that is not locked."""
        kept = self.kept()
        if kept is not None:
            return kept
        beside = FencingFiles(self.path, self._mode, self._purpose, fenced=False)
        return Hold(linux, self.path, self._mode, False, beside, self._network)


class Attempt:
    """One acquire, which takes the first permit that it is granted. `undo` puts back all descriptors.

    Args:
        permits: the permits to choose from.
        grant: the grant that gets the permit.
        add: counts the acquire in the grant, under the lock.
    """

    _serial = itertools.count(1)

    def __init__(self, permits: list[Permit], grant: Grant, add: Callable[[], object]) -> None:
        self._permits, self._grant, self._add = permits, grant, add
        self._in_hand: list[tuple[Permit, Hold]] = []
        self._won: Permit | None = None

    def try_all(self) -> bool:
        """Take a free permit. Never waits."""
        for permit in self._permits:
            hold = self._take(permit)
            try:
                hold.acquire(0)
            except LockTimeout:
                self._put_back()
            else:
                self._win(permit, hold)
                return True
        return False

    def lend_all(self, notify: Callable[[], None]) -> bool:
        """Let a thread wait for each permit. Return False if one cannot be started."""
        return all(self._take(permit).lend(notify) for permit in self._permits)

    def end_waits(self) -> bool:
        """Walk away from the waits that have not ended. Keep one permit of those that have, if any."""
        errors = []
        for permit, hold in self._in_hand:
            wait = hold.end_wait()
            if wait is not None and wait.error is not None:
                errors.append(wait.error)
            elif wait is not None and hold.handle is not None and self._won is None:
                if hold.enter():
                    self._win(permit, hold)
                else:
                    hold.close()  # its file was deleted: if kept, it would be granted again and again
        self._put_back()
        if self._won is None and errors:
            raise errors[0]
        return self._won is not None

    def refuse_deadlock(self, path: str, task: Owner | None) -> None:
        """Refuse a wait without a limit that only the caller could end.

        Args:
            path: of the semaphore, for the message.
            task: the waiting task, if the wait leaves the event loop running.

        Raises:
            LockDeadlockError: the caller holds every permit.
        """
        for permit in self._permits:
            hold = self._take(permit)
            here = is_held_here(hold.identity, task)
            self._put_back()
            if not here:
                return
        raise LockDeadlockError(
            f"all {len(self._permits)} permits of semaphore {path!r} are held by this very thread or task: it would "
            "wait for itself for ever; release one, or set a timeout"
        )

    def undo(self) -> None:
        """Undo the acquire: release the permit and put back all descriptors."""
        self._grant.end()
        if self._won is not None:
            hold = self._won.remove(self._grant)
            if hold is not None:
                self._in_hand.append((self._won, hold))
        self._put_back()

    def _take(self, permit: Permit) -> Hold:
        hold = permit.take()
        self._in_hand.append((permit, hold))
        return hold

    def _win(self, permit: Permit, hold: Hold) -> None:
        hold.grants = next(self._serial)
        self._won = permit
        owner = self._grant.owner()
        if owner is not None:
            permit.watch(owner)
        if not isinstance(owner, asyncio.Task):
            self._grant.enter()
        self._add()
        permit.add(self._grant, hold)
        self._in_hand = [one for one in self._in_hand if one[1] is not hold]

    def _put_back(self) -> None:
        while self._in_hand:
            permit, hold = self._in_hand[-1]
            permit.put_back(None, hold)
            self._in_hand.pop()


class Queue:
    """The place in the queue during an acquire. With a timeout of 0 it is taken only if no other process waits."""

    def __init__(self, lock: FileLock, path: str, limit: float | None) -> None:
        self._lock, self._path, self._limit = lock, path, limit

    def __enter__(self) -> None:
        try:
            self._lock._acquire(self._limit, None, None)
        except LockTimeout:
            if self._limit != 0:
                raise LockTimeout(self._path, self._limit or 0.0) from None
        except BaseException:
            self.leave()
            raise

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def __aenter__(self) -> None:
        try:
            await self._lock.acquire_async(self._limit)
        except LockTimeout:
            if self._limit != 0:
                raise LockTimeout(self._path, self._limit or 0.0) from None
        except BaseException:
            self.leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave the queue, so that the next process comes to the front."""
        grant = self._lock._own.of_caller()
        if grant is not None:
            self._lock._release(grant)
