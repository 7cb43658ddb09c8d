"""`Volume`: a directory that replicas share, and the replicas that are alive there.

A replica joins when it starts and is alive until its last process ends; see `sharedvol.volume.registry`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharedvol.errors import (
    DuplicateReplicaError,
    InvalidNameError,
    LockError,
    LockTimeout,
    NotJoinedError,
    PresenceError,
    ReplicaAliveError,
)
from sharedvol.host import here
from sharedvol.identity import container_id, worker_token
from sharedvol.locks.arguments import MAX_PURPOSE
from sharedvol.locks.file import linux
from sharedvol.locks.file.below import LockBelow
from sharedvol.network import NetworkPolicy
from sharedvol.volume.duplicates import describe_duplicate
from sharedvol.volume.membership import Membership
from sharedvol.volume.open_register import OpenRegister
from sharedvol.volume.record import Replica, ReplicaRecord, is_name
from sharedvol.volume.registry import LifetimeLock, ReplicaRegistry, claim_slot


class Volume:
    """A directory that replicas share.

    ::

        volume = Volume("/app/shared")
        volume.join()
        print(volume.slot, [replica.name for replica in volume.replicas() if replica.alive])

    Args:
        path: the directory; it must exist when it is joined.
        timeout: seconds that a method may wait while other replicas join or are removed, which takes milliseconds.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system: each method raises `NetworkFileSystemError`. None as the environment
            variable ``SHAREDVOL_STRICT`` says.

    Raises:
        PresenceError: this is not Linux. No other kernel has open file description locks.
        ValueError: ``timeout`` is negative or not a number, or both ``allow_network`` and ``strict`` are set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 30.0,
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        if not linux.AVAILABLE:
            raise PresenceError("presence needs open file description locks, which only Linux has: run it on Linux")
        self._path = os.path.abspath(os.fspath(path))
        self._network = NetworkPolicy(allow_network, strict)
        self._use(ReplicaRegistry(self._path, network=self._network), timeout)
        self._membership: Membership | None = None

    def _use(self, register: ReplicaRegistry, timeout: float) -> None:
        self._register, self._timeout = register, timeout
        self._gate = register.gate_lock(timeout)
        self._removing: dict[str, LockBelow] = {}

    @classmethod
    def opened(cls, directory: int, path: str | os.PathLike[str], *, timeout: float = 30.0) -> Volume:
        """Return a volume for a directory that is open already. Its path is only shown and never opened.

        A network file system is accepted without a warning, because the caller can check the descriptor.

        Args:
            directory: a descriptor of the directory. The caller keeps it open for as long as it uses the volume.
            path: its path, for messages.
            timeout: as for `Volume`.
        """
        volume = cls(path, timeout=timeout, allow_network=True)
        volume._use(ReplicaRegistry(volume._path, directory), timeout)
        return volume

    @property
    def path(self) -> Path:
        """The directory, absolute."""
        return Path(self._path)

    def join(self, name: str | None = None, *, purpose: str = "") -> Membership:
        """Claim a name and a slot, for as long as this process lives.

        Other processes of the same container may join under the same name. They share its slot, and the replica is
        alive until the last of them ends. A forked child is not a member until it calls this method.

        Args:
            name: the replica's name; by default the container's.
            purpose: what the replica is for, in at most 200 characters. ``sharedvol status`` shows it.

        Raises:
            DuplicateReplicaError: a live replica of another container has the name. The message says why.
            InvalidNameError: ``name`` is not safe as part of a file name.
            PresenceError: the volume cannot be written, or this process has joined it already.
            LockTimeout: another process that joins does not finish in time.
            LockFileError: a lock file cannot be used.
            NetworkFileSystemError: it is on a network file system, and the volume is ``strict``.
            IdentityError: this container has no name of its own.
            ValueError: ``purpose`` is too long.
        """
        if len(purpose) > MAX_PURPOSE:
            raise ValueError(f"purpose has {len(purpose)} characters: give at most {MAX_PURPOSE}")
        own = container_id() if name is None else name
        if not is_name(own):
            raise InvalidNameError(
                f"replica name {own!r} is not safe as a file name: use at most 64 of [A-Za-z0-9._-], not beginning "
                "with '.' or '-', or pass no name to use the container's"
            )
        self._register.make()
        with self._gate, self._register.existing() as register:
            if self._membership is not None and self._membership.active:
                raise PresenceError(
                    f"this process has joined {self._path!r} as {self._membership.name!r} already: use what join() "
                    "returned, or call leave() first"
                )
            self._membership = self._join(register, own, given=name is not None, purpose=purpose)
        return self._membership

    def _join(self, register: OpenRegister, name: str, *, given: bool, purpose: str) -> Membership:
        with contextlib.ExitStack() as undo:
            name_lock = LifetimeLock(register.names, register.name_lock(name))
            undo.callback(name_lock.release)
            if register.is_alive(name):
                slot, slot_lock = self._share(register, name, given)
                undo.callback(slot_lock.release)
            elif name_lock.is_held():
                raise self._held_error(register.name_lock(name))
            else:
                slot, slot_lock = claim_slot(register)
                undo.callback(slot_lock.release)
                boot_id, mount_namespace = here()
                now = datetime.now(UTC)
                register.write(
                    ReplicaRecord(name, slot, now, purpose, os.getpid(), worker_token(), boot_id, mount_namespace)
                )
            # Last, so that a process that finds the name locked can trust the record.
            if not name_lock.acquire(register.names):
                raise self._held_error(register.name_lock(name))
            undo.pop_all()
        return Membership(name, slot, (name_lock, slot_lock))

    def _share(self, register: OpenRegister, name: str, given: bool) -> tuple[int, LifetimeLock]:
        """Acquire the slot of another process of this container, and share it with that process."""
        known = register.read(name)
        if not known.in_this_container() or known.slot is None:
            raise DuplicateReplicaError(
                describe_duplicate(known, self._path, given=given), name, Replica.of(known, True)
            )
        path = register.slot_lock(known.slot)
        slot_lock = LifetimeLock(register.slots, path)
        if not slot_lock.acquire(register.slots):
            slot_lock.release()
            raise self._held_error(path)
        return known.slot, slot_lock

    @property
    def slot(self) -> int:
        """The slot of this process's replica.

        Raises:
            NotJoinedError: the process has not joined, has left, or is a forked child that has not joined.
        """
        if self._membership is None or not self._membership.active:
            raise NotJoinedError(
                f"this process has no slot on {self._path!r}: call join() first, in each forked worker"
            )
        return self._membership.slot

    def replicas(self) -> list[Replica]:
        """Return the live replicas and those that are dead but not forgotten, by name. This takes no lock.

        Raises:
            PresenceError: the volume cannot be read.
        """
        found: list[Replica] = []
        with self._register.open() as register:
            if register is None:
                return found
            for name in register.list_names():
                # Query the lock first: then the record of a live name is by its holder or by a later one.
                alive = register.is_alive(name)
                if alive or register.is_known(name):
                    found.append(Replica.of(register.read(name), alive))
        return found

    def slots(self) -> list[int]:
        """Return the slots that are held now. This takes no lock.

        Raises:
            PresenceError: the volume cannot be read.
        """
        with self._register.open() as register:
            return [] if register is None else register.held_slots()

    def is_alive(self, name: str) -> bool | None:
        """Return whether a replica is alive. None if it never joined or was forgotten. This takes no lock.

        Raises:
            PresenceError: the volume cannot be read.
        """
        if not is_name(name):
            return None
        with self._register.open() as register:
            if register is None:
                return None
            if register.is_alive(name):
                return True
            return False if register.is_known(name) else None

    def forget(self, name: str) -> bool:
        """Remove the record and the lock file of a dead replica.

        Returns:
            Whether there was anything to remove.

        Raises:
            ReplicaAliveError: the replica is alive.
            PresenceError: the volume cannot be read or written.
            LockTimeout: another process that joins does not finish in time.
            LockFileError: a lock file cannot be used.
        """
        with self.hold_dead(name) as dead:
            if dead:
                with self._register.existing() as register:
                    register.remove(name)
                    with contextlib.suppress(LockError):
                        self._removing[name].check()  # a lock file that replaced this one may be of a live replica
                        register.remove_lock(name)
                return True
            if self.is_alive(name) is not None:
                raise ReplicaAliveError(f"replica {name!r} on {self._path!r} is alive: stop it before you forget it")
            return False

    def forget_dead(self, names: Iterable[str], *, seconds: float = 0.02) -> list[str]:
        """Forget the dead ones of many replicas. A name that cannot be forgotten is skipped.

        This also removes lock files that earlier releases left behind when a replica was forgotten.

        Args:
            names: the names of the replicas.
            seconds: the maximum duration, because no replica can join meanwhile.

        Returns:
            The names that were forgotten.

        Raises:
            PresenceError: the volume cannot be read.
            LockTimeout: another process that joins does not finish in time.
            LockFileError: a lock file cannot be used.
        """
        forgotten = []
        with self._gate, self._register.existing() as register:
            end = time.monotonic() + seconds
            for name in names:
                if time.monotonic() >= end:
                    break
                if is_name(name) and register.forget(name):
                    forgotten.append(name)
        return forgotten

    @contextlib.contextmanager
    def hold_dead(self, name: str) -> Iterator[bool]:
        """Keep a dead replica dead for the block: no replica can join meanwhile. The block may call `forget`.

        ::

            with volume.hold_dead(name) as dead:
                if dead:
                    ...  # be quick, because no replica can join
                    volume.forget(name)

        Yields:
            True if the replica is dead. False if it is alive or never joined: then it may join at any time.

        Raises:
            PresenceError: the volume cannot be read.
            LockTimeout: another process that joins does not finish in time.
            LockFileError: a lock file cannot be used.
        """
        if self.is_alive(name) is None:
            yield False
            return
        with contextlib.ExitStack() as held:
            held.enter_context(self._gate)
            yield self.is_alive(name) is False and self._take_dead(name, held)

    def _take_dead(self, name: str, held: contextlib.ExitStack) -> bool:
        """Acquire the name's lock as well. It excludes a process that joins after ``join.lock`` was deleted."""
        lock = self._removing.setdefault(name, self._register.name_lock(name))
        held.callback(lambda: None if lock.held else self._removing.pop(name, None))
        try:
            held.enter_context(lock)
        except LockTimeout:
            return False  # a process that is not a replica holds it
        return True

    def _held_error(self, path: str) -> PresenceError:
        return PresenceError(
            f"lock {path!r} is held by a process that is not a replica: find it with `sharedvol status {self._path}`"
        )

    def __repr__(self) -> str:
        return f"<Volume {self._path!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the membership, which belongs to this process.
        return _rebuild, (self._path, self._timeout, self._network.allow, self._network.strict)


def _rebuild(path: str, timeout: float, allow_network: bool = False, strict: bool | None = None) -> Volume:
    return Volume(path, timeout=timeout, allow_network=allow_network, strict=strict)
