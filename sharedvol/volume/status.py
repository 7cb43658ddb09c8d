"""The status of a volume: replicas, slots, locks, and files that wait to be collected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sharedvol.errors import InvalidNameError
from sharedvol.filesystem import open_directory, open_top
from sharedvol.locks.file.holder_file import read_record
from sharedvol.locks.file.proc_locks import LockState, ProcLocks
from sharedvol.locks.holder import Holder
from sharedvol.paths import parse_name
from sharedvol.volume import Volume
from sharedvol.volume.record import Replica
from sharedvol.volume.registry import DIRECTORY, ReplicaRegistry

KINDS: Final = ("results", "logs")
MAX_DEPTH: Final = 64
"""How deep files are searched below the directory of a kind."""
LOCK_DEPTH: Final = 4
"""How deep lock files are searched below the volume."""
LOCK_ENTRIES: Final = 100_000
"""How many directory entries are read in the search for lock files."""

Tick = Callable[[], object]


@dataclass(frozen=True, slots=True)
class LockStatus:
    """The state of a lock file.

    Attributes:
        path: relative to the volume.
        state: ``free``, ``shared``, ``exclusive``, ``unknown``.
        holders: the processes that are known, and their replicas: ``{"pid": 12, "replica": "c1"}``.
        holder: the record that the holder of a fenced lock wrote, which may be forged; None if there is none.
    """

    path: str
    state: str
    holders: list[dict[str, Any]]
    holder: Holder | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, with the time as text."""
        return {
            "path": self.path,
            "state": self.state,
            "holders": self.holders,
            "holder": self.holder.as_dict() if self.holder else None,
        }


@dataclass(slots=True)
class Backlog:
    """The files of one kind and container that wait to be collected.

    Attributes:
        container: the container; None if the name of a file does not contain one.
        kind: the kind.
        files: how many files there are.
        bytes: their size.
    """

    container: str | None
    kind: str
    files: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Status:
    """The status of a volume, from `read_status`.

    Attributes:
        slots: each slot that is held, with the name of its replica; None if that is not known.
        complete: False if a part is missing, because directories could not be read or had too many entries.
    """

    directory: str
    replicas: list[Replica]
    slots: dict[int, str | None]
    locks: list[LockStatus]
    backlog: list[Backlog] = field(default_factory=list)
    complete: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object that ``sharedvol status --json`` prints."""
        return {
            "directory": self.directory,
            "replicas": [replica.as_dict() for replica in self.replicas],
            "slots": [{"slot": slot, "replica": name} for slot, name in self.slots.items()],
            "locks": [lock.as_dict() for lock in self.locks],
            "backlog": [asdict(one) for one in self.backlog],
            "complete": self.complete,
        }


def read_status(directory: str, kinds: Sequence[str] = KINDS, tick: Tick = lambda: None) -> Status:
    """Read the status of a volume. This changes nothing and takes no locks.

    Args:
        directory: the volume.
        kinds: the names of directories whose files the sidecar collects.
        tick: called for every directory entry.

    Raises:
        PresenceError: the register of replicas cannot be read.
    """
    volume = Volume(directory, strict=False)  # reading the status relies on no lock
    replicas = volume.replicas()
    named: dict[int | None, str] = {replica.slot: replica.name for replica in replicas if replica.alive}
    slots = {slot: named.get(slot) for slot in volume.slots()}
    walk = _Walk(directory, tick)
    status = Status(os.path.abspath(directory), replicas, slots, walk.locks(kinds, _names_of(replicas)))
    status.backlog = walk.backlog(kinds)
    status.complete = walk.complete
    return status


def _names_of(replicas: list[Replica]) -> Callable[[int], str | None]:
    """Return a function that names the replica of a process: the live one with the same mount namespace."""
    here = {one.mount_namespace: one.name for one in replicas if one.alive}

    def name_of(pid: int) -> str | None:
        try:
            return here.get(os.stat(f"/proc/{pid}/ns/mnt").st_ino)
        except OSError:
            return None  # it has ended, or belongs to another user

    return name_of


class _Walk:
    """A walk through a volume that follows no links. ``complete`` is False if something could not be read."""

    def __init__(self, top: str, tick: Tick) -> None:
        self._top, self._tick = top, tick
        self._left = LOCK_ENTRIES
        self.complete = True

    def locks(self, kinds: Sequence[str], name_of: Callable[[int], str | None]) -> list[LockStatus]:
        """Return the lock files of the volume. Of the register of replicas only ``join.lock`` is included."""
        holders = ProcLocks()
        found = [path for path in self._lock_files("", kinds, LOCK_DEPTH) if path]
        gate = os.path.relpath(ReplicaRegistry(self._top).gate, self._top)
        if os.path.lexists(os.path.join(self._top, gate)):
            found.append(gate)

        def lock(path: str) -> LockStatus:
            whole = os.path.abspath(os.path.join(self._top, path))
            held: LockState = holders.look(whole)
            record = read_record(whole) if held.state == "exclusive" else None
            return LockStatus(
                path,
                held.state,
                [{"pid": pid, "replica": name_of(pid)} for pid in held.pids],
                Holder(**record) if record is not None else None,
            )

        return [lock(path) for path in sorted(found)]

    def _lock_files(self, below: str, kinds: Sequence[str], depth: int) -> Iterator[str]:
        for entry in self._entries(below):
            self._left -= 1
            if self._left < 0:
                self.complete = False
                return
            path = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if depth > 1 and entry.name != DIRECTORY and entry.name not in kinds:
                    yield from self._lock_files(path, kinds, depth - 1)
            elif entry.name.endswith(".lock") and entry.is_file(follow_symlinks=False):
                yield path

    def backlog(self, kinds: Sequence[str]) -> list[Backlog]:
        """Return the files that wait to be collected, by container and kind."""
        found: dict[tuple[str | None, str], Backlog] = {}

        def add(container: str | None, kind: str, size: int) -> None:
            one = found.setdefault((container, kind), Backlog(container, kind))
            one.files += 1
            one.bytes += size

        for entry in self._entries(""):
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.name in kinds:
                for name, size in self._files(entry.name, MAX_DEPTH):
                    add(_container(name), entry.name, size)
                continue
            for kind in kinds:
                for _, size in self._files(os.path.join(entry.name, kind), MAX_DEPTH):
                    add(entry.name, kind, size)
        return [found[key] for key in sorted(found, key=lambda key: (key[0] is None, key[0] or "", key[1]))]

    def _files(self, below: str, depth: int) -> Iterator[tuple[str, int]]:
        """Yield name and size of each regular file that is not hidden."""
        for entry in self._entries(below):
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth > 1:
                        yield from self._files(os.path.join(below, entry.name), depth - 1)
                    else:
                        self.complete = False
                elif entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it was collected in the meantime

    def _entries(self, below: str) -> Iterator[os.DirEntry[str]]:
        try:
            # The path of the volume may be a symbolic link. A directory in it may not.
            fd = open_directory(os.path.join(self._top, below)) if below else open_top(self._top)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError:
            self.complete = False
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._tick()
                    yield entry
        except OSError:
            self.complete = False
        finally:
            os.close(fd)


def _container(name: str) -> str | None:
    try:
        found = parse_name(name).container
    except InvalidNameError:
        return None
    return (
        found if not found.startswith(".") else None
    )  # as in the sidecar: ``x_...json`` would name the container ``..``
