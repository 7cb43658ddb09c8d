"""Which replicas are alive, at a cost that follows what changed.

The register keeps two small files for each container that joined, and any process that may write the volume can add
more. So its directory is only listed again after it has changed, and only files that are new or changed are examined.
In between, the kernel is asked about the replicas that were alive. A replica that joins always writes its record,
which changes the directory. Each look takes a bounded number of steps, and names that are left for the next look count
as unknown.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from sharedvol import LockTimeout, Volume
from sharedvol.locks.file.pinned import TICK
from sharedvol.volume.open_register import OpenRegister
from sharedvol.volume.record import MAX_SLOTS, is_name
from sharedvol.volume.registry import ReplicaRegistry
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.monitor.snapshot import ReplicaView

SHOWN: Final = 200
"""Dead replicas that are shown, and so are not forgotten. Of more, those that died last are kept."""
EXAMINED: Final = 2_000
"""Names that one look examines."""
CANDIDATES: Final = 20_000
"""Names that are remembered between two listings, to be forgotten."""
_REST: Final = 20  # times as long as a listing took nothing is listed: a twentieth of a core at most
_COARSE_TICK: Final = 30 * TICK  # where the file system keeps whole seconds


@dataclass(frozen=True, slots=True)
class RollCall:
    """What one look found.

    Attributes:
        views: replicas that are alive, and dead ones, as far as they are shown.
        alive: how many are alive.
        dead: how many are dead and known.
        unknown: how many were not examined yet.
    """

    views: tuple[ReplicaView, ...] = ()
    alive: int = 0
    dead: int = 0
    unknown: int = 0


@dataclass(slots=True)
class _Listing:
    """What one listing found."""

    examined: set[str] = field(default_factory=set)
    prints: array[int] = field(default_factory=lambda: array("q"))
    new: array[int] = field(default_factory=lambda: array("q"))
    records: int = 0
    left: int = 0
    candidates: list[str] = field(default_factory=list)
    offered: int = 0


class ReplicaWatch:
    """Watches the register of one volume.

    Args:
        spool: the volume, open.
        clock: a monotonic clock, in nanoseconds.
    """

    def __init__(self, spool: Directory, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._spool, self._clock = spool, clock
        self._register = ReplicaRegistry(spool.shown, spool.fd)
        self._next = 0  # when a listing is due, at the earliest
        self._reset()

    def _reset(self) -> None:
        self._stamp: tuple[int, ...] = ()
        self._since = 0
        self._settled = False
        self._seen: array[int] = array("q")  # fingerprints of files that were examined, sorted: 8 bytes each
        self._alive: dict[str, ReplicaView] = {}
        self._dead: dict[str, ReplicaView] = {}
        self._dead_count = self._unknown = 0
        self._candidates: list[str] = []  # names that are dead and not shown

    def look(self) -> RollCall:
        """Look at what may have changed since the last call.

        Raises:
            PresenceError: the register cannot be used.
        """
        with self._register.open() as register:
            if register is None:
                self._reset()
                return RollCall()
            self._ask_the_living(register)
            info, now = os.fstat(register.names), self._clock()
            stamp = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
            if stamp[:2] != self._stamp[:2]:
                self._reset()
            if stamp != self._stamp:
                self._stamp, self._since, self._settled = stamp, now, False
            if not self._settled and now >= self._next:
                self._list(register, now, info)
                self._next = self._clock() + _REST * (self._clock() - now)
        views = (*self._alive.values(), *self._dead.values())
        return RollCall(views, len(self._alive), self._dead_count, self._unknown)

    def forget(self, volume: Volume, most: int) -> None:
        """Forget dead replicas that are not shown and left no directory, at most ``most``.

        Raises:
            SharedVolError: the register cannot be used.
        """
        step, rest = self._candidates[:most], self._candidates[most:]
        names = (name for name in step if self._spool.inode(name) is None)
        if step:
            with contextlib.suppress(LockTimeout):  # a replica joins
                volume.forget_dead(names)
                step = []
        self._candidates = rest + step

    def _ask_the_living(self, register: OpenRegister) -> None:
        for name in list(islice(self._alive, EXAMINED)):
            view = self._alive.pop(name)
            if register.is_alive(name):
                self._alive[name] = view  # at the end: of very many each gets its turn
            elif register.is_known(name):
                self._dead_count += 1
                self._show_dead(name, view)

    def _list(self, register: OpenRegister, now: int, info: os.stat_result) -> None:
        # Changes within one tick of the file system's clock may leave the same time.
        tick = TICK if info.st_ctime_ns % 1_000_000_000 else _COARSE_TICK
        is_calm = now - self._since > tick
        listing = self._read(register, info.st_ctime_ns if is_calm else info.st_ctime_ns - tick)
        # Asked between the listing and the look at the locks: a replica whose record was listed, and which was still
        # to take its lock, holds the gate.
        is_joining = register.is_changing()
        for name in listing.examined:
            self._examine(register, name)
        self._dead = {name: view for name, view in self._dead.items() if register.is_known(name)}
        self._settled = is_calm and not is_joining and not listing.left
        if not is_joining:
            listing.prints.extend(listing.new)
        self._seen = array("q", sorted(listing.prints))
        living = sum(register.is_known(name) for name in self._alive)
        self._unknown = listing.left
        self._dead_count = max(0, listing.records - listing.left - living)
        self._candidates = list(set(listing.candidates) - self._dead.keys() - self._alive.keys())

    def _read(self, register: OpenRegister, certain: int) -> _Listing:
        """Read the directory. Memory is for what is new, and 8 bytes for each file.

        Args:
            register: to read.
            certain: a record that was changed later may change again and keep its time.
        """
        listing, seen = _Listing(), self._seen
        may_remove = _remover(register)
        with os.scandir(register.names) as entries:
            for entry in entries:
                name, suffix = entry.name[:-5], entry.name[-5:]
                if suffix not in (".json", ".lock") or not is_name(name):
                    continue
                is_record = suffix == ".json"
                listing.records += is_record
                changed = _changed(entry) if is_record else 0  # an inode alone may be that of the next record, too
                fingerprint = hash((entry.name, entry.inode(), changed))
                at = bisect_left(seen, fingerprint)
                if at < len(seen) and seen[at] == fingerprint:
                    listing.prints.append(fingerprint)
                    if may_remove(entry):
                        _sample(listing, name)
                elif name in listing.examined or len(listing.examined) < EXAMINED:
                    listing.examined.add(name)
                    if changed <= certain:
                        listing.new.append(fingerprint)
                else:
                    listing.left += is_record
        return listing

    def _examine(self, register: OpenRegister, name: str) -> None:
        was = self._alive.pop(name, None)
        if register.is_alive(name):
            self._dead.pop(name, None)
            if len(self._alive) < MAX_SLOTS:  # there cannot be more: the rest only looks alive
                self._alive[name] = _view(register, name, True)
        elif (was is not None or len(self._dead) < SHOWN) and register.is_known(name):
            self._show_dead(name, _view(register, name, False))

    def _show_dead(self, name: str, view: ReplicaView) -> None:
        if len(self._dead) >= SHOWN and name not in self._dead:
            del self._dead[next(iter(self._dead))]
        self._dead[name] = ReplicaView(name, False, view.slot, view.since)


def _view(register: OpenRegister, name: str, alive: bool) -> ReplicaView:
    known = register.read(name)
    return ReplicaView(name, alive, known.slot, known.joined_at.timestamp() if known.joined_at else None)


def _changed(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_ctime_ns
    except OSError:
        return 0


def _sample(listing: _Listing, name: str) -> None:
    """Keep a random choice: where some cannot be forgotten, they do not hide the others."""
    listing.offered += 1
    if len(listing.candidates) < CANDIDATES:
        listing.candidates.append(name)
    elif (at := random.randrange(listing.offered)) < CANDIDATES:
        listing.candidates[at] = name


def _remover(register: OpenRegister) -> Callable[[os.DirEntry[str]], bool]:
    """Return a function that says whether this process may remove a file: the directory is sticky."""
    user = os.geteuid()
    if user in (0, os.fstat(register.names).st_uid):
        return lambda entry: True

    def is_own(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.stat(follow_symlinks=False).st_uid == user
        except OSError:
            return False

    return is_own
