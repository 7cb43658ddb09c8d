"""`Volume`: one directory that replicas share, and who is there.

A replica joins when it starts and is alive until its last process ends; see `sharedvol.volume.registry` for how.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
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
from sharedvol.locks.file import linux as kernel
from sharedvol.locks.file.below import LockBelow
from sharedvol.network import NetworkPolicy
from sharedvol.volume.duplicates import describe_duplicate
from sharedvol.volume.open_register import OpenRegister
from sharedvol.volume.record import ReplicaRecord, is_name
from sharedvol.volume.registry import LifetimeLock, ReplicaRegistry, claim_slot


@dataclass(frozen=True, slots=True)
class Replica(ReplicaRecord):
    """A replica that joined a volume.

    Only ``alive`` is certain. The rest is what the replica wrote, and None or empty where that cannot be
    read; ``purpose`` may hold anything, also what a terminal would obey.

    Attributes:
        alive: whether one of its processes lives; true of one that is stopped or hangs, too.
    """

    alive: bool = False


class Membership:
    """A process's part in a volume, from `Volume.join`. Ends with `leave`, with a ``with``, or with the process.

    Attributes:
        name: the replica's name.
        slot: its slot: the lowest that was free when its first process joined.
    """

    def __init__(self, name: str, slot: int, claims: tuple[LifetimeLock, ...]) -> None:
        self.name, self.slot = name, slot
        self._claims = claims
        self._worker = worker_token()

    @property
    def active(self) -> bool:
        """Whether the caller is a member by this: not after `leave`, and not in a forked child."""
        return bool(self._claims) and self._worker == worker_token()

    def leave(self) -> None:
        """Be a member no more; what is known of the replica stays.

        Does nothing the second time, or in a forked child.
        """
        if self.active:
            claims, self._claims = self._claims, ()
            for claim in claims:
                claim.drop()

    def __enter__(self) -> Membership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        return f"<Membership {self.name!r} slot {self.slot}{'' if self.active else ', ended'}>"


class Volume:
    """A directory that replicas share.

    ::

        volume = Volume("/app/shared")
        volume.join()
        print(volume.slot, [replica.name for replica in volume.replicas() if replica.alive])

    Args:
        path: the directory; it must exist when it is joined.
        timeout: seconds that any method may wait while others join or are removed, which takes milliseconds.
        allow_network: accept a network file system without a warning.
        strict: refuse one: each method raises `NetworkFileSystemError`. None as the environment variable
            ``SHAREDVOL_STRICT`` says.

    Raises:
        PresenceError: this is not Linux: no other kernel has open file description locks.
        ValueError: ``timeout`` is negative or not a number; ``allow_network`` and ``strict``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 30.0,
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        if not kernel.AVAILABLE:
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
        """Return the volume that is open already: its path is only shown, so nothing else can take its place.

        A network file system is accepted without a warning: the caller has the descriptor to check.

        Args:
            directory: a descriptor of it, which stays the caller's and open as long as the volume is used.
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

        Other processes of the same container may join under the same name: they share its slot, and the
        replica is alive until the last of them ends. A forked child starts without its parent's part and
        joins by itself.

        Args:
            name: of the replica; the container's own where it is not given.
            purpose: a few words for people who look, at most 200 characters.

        Raises:
            DuplicateReplicaError: a live replica of another container has the name; says why that can be.
            InvalidNameError: ``name`` is not safe as a part of a file name.
            PresenceError: the volume cannot be written, or this process has joined it already.
            LockTimeout, LockFileError: another one that joins does not end; a lock file cannot be used.
            NetworkFileSystemError: it is on a network file system, and the volume is ``strict``.
            IdentityError: nothing names this container.
            ValueError: ``purpose`` is too long.
        """
        if len(purpose) > MAX_PURPOSE:
            raise ValueError(f"purpose has {len(purpose)} characters: give at most {MAX_PURPOSE}")
        own = container_id() if name is None else name
        if not is_name(own):
            raise InvalidNameError(
                f"replica name {own!r} is not safe as a file name: use at most 64 of [A-Za-z0-9._-], not beginning "
                "with '.' or '-'; without a name the container's own is taken and made safe"
            )
        self._register.make()
        with self._gate, self._register.existing() as register:
            if self._membership is not None and self._membership.active:
                raise PresenceError(
                    f"this process has joined {self._path!r} as {self._membership.name!r} already: keep what join() "
                    "gave, or leave() first"
                )
            self._membership = self._join(register, own, given=name is not None, purpose=purpose)
        return self._membership

    def _join(self, register: OpenRegister, name: str, *, given: bool, purpose: str) -> Membership:
        with contextlib.ExitStack() as undo:
            claim = LifetimeLock(register.names, register.name_lock(name))
            undo.callback(claim.drop)
            if register.is_alive(name):
                slot, place = self._share(register, name, given)
                undo.callback(place.drop)
            elif claim.is_held():
                raise self._foreign(register.name_lock(name))
            else:
                slot, place = claim_slot(register)
                undo.callback(place.drop)
                boot_id, mount_namespace = here()
                now = datetime.now(UTC)
                register.write(
                    ReplicaRecord(name, slot, now, purpose, os.getpid(), worker_token(), boot_id, mount_namespace)
                )
            # Last: a process that finds the name held can believe its record.
            if not claim.take(register.names):
                raise self._foreign(register.name_lock(name))
            undo.pop_all()
        return Membership(name, slot, (claim, place))

    def _share(self, register: OpenRegister, name: str, given: bool) -> tuple[int, LifetimeLock]:
        """Hold the slot of another process of this container together with it."""
        known = register.read(name)
        if not known.in_this_container() or known.slot is None:
            raise DuplicateReplicaError(describe_duplicate(known, self._path, given=given), name, _replica(known, True))
        path = register.slot_lock(known.slot)
        place = LifetimeLock(register.slots, path)
        if not place.take(register.slots):
            place.drop()
            raise self._foreign(path)
        return known.slot, place

    @property
    def slot(self) -> int:
        """The slot of this process's replica.

        Raises:
            NotJoinedError: it has not joined, or left; or it is a forked child that has not joined by itself.
        """
        if self._membership is None or not self._membership.active:
            raise NotJoinedError(
                f"this process has no slot on {self._path!r}: call join() first; a forked worker calls it by itself"
            )
        return self._membership.slot

    def replicas(self) -> list[Replica]:
        """The replicas that live, and the dead that are not forgotten, by name. Waits for nobody.

        Raises:
            PresenceError: the volume cannot be read.
        """
        found: list[Replica] = []
        with self._register.open() as register:
            if register is None:
                return found
            for name in register.list_names():
                # First the lock: the record of a name that is held was written by its holder or a later one.
                alive = register.is_alive(name)
                if alive or register.is_known(name):
                    found.append(_replica(register.read(name), alive))
        return found

    def slots(self) -> list[int]:
        """The slots that are held now. Waits for nobody.

        Raises:
            PresenceError: the volume cannot be read.
        """
        with self._register.open() as register:
            return [] if register is None else register.held_slots()

    def is_alive(self, name: str) -> bool | None:
        """Whether the replica lives; None if none of that name ever joined, or it was forgotten. Waits for nobody.

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
            ReplicaAliveError: it lives.
            PresenceError: the volume cannot be read or written.
            LockTimeout, LockFileError: another one that joins does not end; a lock file cannot be used.
        """
        with self.hold_dead(name) as dead:
            if dead:
                with self._register.existing() as register:
                    register.remove(name)
                    with contextlib.suppress(LockError):
                        self._removing[name].check()  # a lock file that replaced it may be of a live replica
                        register.remove_lock(name)
                return True
            if self.is_alive(name) is not None:
                raise ReplicaAliveError(f"replica {name!r} on {self._path!r} is alive: stop it before it is forgotten")
            return False

    def forget_dead(self, names: Iterable[str], *, seconds: float = 0.02) -> list[str]:
        """Forget those of many replicas that are dead. A name that cannot be forgotten is passed over.

        This also removes the lock files that earlier releases left of replicas that were forgotten.

        Args:
            names: of replicas.
            seconds: how long to take at most: no replica can join meanwhile.

        Returns:
            The names that were forgotten.

        Raises:
            PresenceError: the volume cannot be read.
            LockTimeout, LockFileError: another process that joins does not end; a lock file cannot be used.
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
        """Keep a dead replica dead for the block: nobody joins meanwhile. `forget` may be called inside.

        ::

            with volume.hold_dead(name) as dead:
                if dead:
                    ...  # be quick: no replica can join
                    volume.forget(name)

        Yields:
            True for a dead one; False for one that lives or never joined, which may then join at any time.

        Raises:
            PresenceError: the volume cannot be read.
            LockTimeout, LockFileError: another one that joins does not end; a lock file cannot be used.
        """
        if self.is_alive(name) is None:
            yield False
            return
        with contextlib.ExitStack() as held:
            held.enter_context(self._gate)
            yield self.is_alive(name) is False and self._take_dead(name, held)

    def _take_dead(self, name: str, held: contextlib.ExitStack) -> bool:
        """The name's own lock, too: it keeps out one who joins past a gate that somebody deleted."""
        lock = self._removing.setdefault(name, self._register.name_lock(name))
        held.callback(lambda: None if lock.held else self._removing.pop(name, None))
        try:
            held.enter_context(lock)
        except LockTimeout:
            return False  # a process that is no replica holds it: be careful
        return True

    def _foreign(self, path: str) -> PresenceError:
        return PresenceError(
            f"lock {path!r} is held by a process that is no replica: find it with `sharedvol status {self._path}`"
        )

    def __repr__(self) -> str:
        return f"<Volume {self._path!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has not joined.
        return _rebuild, (self._path, self._timeout, self._network.allow, self._network.strict)


def _rebuild(path: str, timeout: float, allow_network: bool = False, strict: bool | None = None) -> Volume:
    return Volume(path, timeout=timeout, allow_network=allow_network, strict=strict)


def _replica(known: ReplicaRecord, alive: bool) -> Replica:
    return Replica(**asdict(known), alive=alive)
