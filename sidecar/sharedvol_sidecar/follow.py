"""Logs that stay open: copied into the destination as they grow, byte for byte.

A log is followed into ``<name>~<identity>.live`` beside the place of its final name. The size of that file is
the checkpoint: nothing else says how far it got, so nothing can disagree with it after a kill. What is kept
beside it, in ``.sharedvol/follow/<spool>/<identity>.json`` of the destination, is where it lies and whose it is.

A log is known by its inode and time of birth. So it may be renamed while it is followed, and a new file
under its old name is another log. It ends in one of three ways:

- its writer is gone: it is moved like every finished file (`mover`), and the live file is removed before the
  claim is. While there is a claim, whoever recovers it removes the live file too.
- it was cut (copytruncate, or any change of what was copied already): the live file gets the final name, and
  the log goes on in a new one, its next generation. The bytes before the checkpoint are compared at every
  step, so a log that was cut and has grown beyond the checkpoint since is noticed too.
- it was deleted: what its writer still writes is read through our descriptor; then the live file gets the name.

A live file that is missing means that its generation has its final name: it is removed only after that.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date as Date

from sharedvol import publish, remove_stale_temporaries
from sharedvol.paths import MAX_NAME_BYTES
from sharedvol_sidecar import lease
from sharedvol_sidecar.claims import open_private
from sharedvol_sidecar.destination import Destination
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.inodes import identity
from sharedvol_sidecar.items import Item, staging_name
from sharedvol_sidecar.layout import Origin
from sharedvol_sidecar.report import Event, Listener, Tally
from sharedvol_sidecar.scan import Candidate
from sharedvol_sidecar.template import Template, day_of

LIVE = ".live"
"""What the names of files that are still followed end with."""

_CHECKED = 4096  # bytes before the checkpoint that are compared: a log's last lines, which hold times
_AT_A_TIME = 8 * 1024 * 1024
_MAX_STATE = 100_000


@dataclass(frozen=True, slots=True)
class State:
    """What is kept of a followed log.

    Attributes:
        source: its path in the spool when it was first seen.
        kind, container, below: what that path means.
        log_day: the day in an R log's name, as `datetime.date.toordinal` counts.
        day: the day in its final name.
        live: the live file, relative to the destination.
        generation: how often it was cut.
    """

    source: str
    kind: str
    container: str
    below: str
    log_day: int | None
    day: int
    live: str
    generation: int = 0

    @property
    def unit(self) -> str:
        return self.source.partition("/")[0]

    @property
    def origin(self) -> Origin:
        return Origin(self.kind, self.container, self.below, Date.fromordinal(self.log_day) if self.log_day else None)


class Log:
    """One followed log. ``fd`` is -1 until it was seen by this process, which may have started later."""

    __slots__ = ("directory", "fd", "id", "live", "missed", "seen", "size", "state", "stored")

    def __init__(self, id: str, state: State, stored: tuple[int, int]) -> None:
        self.id, self.state, self.stored = id, state, stored
        self.fd = self.live = -1
        self.directory: Directory | None = None
        self.seen = False
        self.missed = 0
        self.size = 0

    def close(self) -> None:
        self.close_live()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close_live(self) -> None:
        if self.live >= 0:
            os.close(self.live)
            self.live = -1
        self.directory = None


def claim_path(log: Log) -> str:
    """What stands for the path of a claim where a live file is moved to its final name."""
    return f"follow/{log.id}.{log.state.generation}"


class Followed:
    """The logs that are followed into one destination. Every call needs the lock on the log's unit.

    Args:
        destination: where they go.
        spool_id: tells this spool from others with the same destination.
        template: the final names.
        dress: gives a new file in the destination its mode and owner, those of the source or configured ones.
        room: whether there is room for more; asked before a log is copied further.
        tell: told of what happens.
    """

    def __init__(
        self,
        destination: Destination,
        spool_id: str,
        template: Template,
        dress: Callable[[int, os.stat_result], None],
        room: Callable[[], bool],
        tell: Listener,
    ) -> None:
        self._destination, self._template = destination, template
        self._dress, self._room, self._tell = dress, room, tell
        self._spool_id = spool_id
        directory = open_private(destination.root)
        for name in ("follow", spool_id):
            directory = directory.make(name, 0o700)[0]
        self._states = directory
        remove_stale_temporaries(f"/proc/self/fd/{directory.fd}")  # of those that were killed
        self.logs: dict[str, Log] = {}
        self.inodes: set[int] = set()
        """The inodes of the followed logs: who has none of these is not followed."""
        self.refresh()

    def refresh(self) -> None:
        """A pass begins: learn what other sidecars follow, and forget what they have finished."""
        with os.scandir(self._states.fd) as entries:
            ids = {entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")}
        for id in ids - self.logs.keys():
            self._load(id)
        for id in self.logs.keys() - ids:
            self._forget(id)
        for log in self.logs.values():
            log.seen = False

    def follow(self, candidate: Candidate, fd: int, info: os.stat_result) -> Log:
        """A log that is not finished was found: `advance` it from now on.

        Args:
            candidate: the log.
            fd: open for reading; stays the caller's.
            info: its status.

        Raises:
            OSError: the destination fails, or is full.
        """
        id = identity(fd, info.st_ino)
        log = self.logs.get(id)
        if log is None:
            log = self._begin(id, candidate, info)
        if log.fd < 0:
            # Not dup(2): who takes a lease on the caller's description would have it as long as we keep ours.
            log.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        log.seen = True
        log.missed = 0
        return log

    def see(self, fd: int, inode: int) -> str:
        """A file with a followed log's inode was found: its id if it is that log, else empty."""
        id = identity(fd, inode)
        log = self.logs.get(id)
        if log is None:
            return ""
        log.seen = True
        log.missed = 0
        return id

    def advance(self, log: Log, tally: Tally) -> bool:
        """Copy what a log has grown by. False if its live file is to be sealed first: it was cut.

        Raises:
            OSError: the destination fails, or is full.
        """
        if not self._current(log) or log.fd < 0:
            return True
        if not self._open_live(log):
            return True
        have = os.fstat(log.live).st_size
        log.size = have
        size = os.fstat(log.fd).st_size
        if size < have or not self._agrees(log, have):
            return False
        if size == have or not self._room():
            return True
        sent = self._copy(log, have, size)
        if not self._agrees(log, have):  # it was cut while we copied: the bytes are of its next generation
            os.ftruncate(log.live, have)
            return False
        log.size = have + sent
        tally.followed += sent
        return True

    def was_cut(self, id: str, fd: int) -> Log | None:
        """Before a followed log is moved: itself, if it no longer holds what was copied.

        Args:
            id: the log's.
            fd: the log, open for reading.
        """
        log = self.logs.get(id)
        if log is None or not self._current(log) or not self._open_live(log, create=False):
            return None
        have = os.fstat(log.live).st_size
        return log if os.fstat(fd).st_size < have or not self._agrees(log, have, fd) else None

    def sealing(self, log: Log) -> Item | None:
        """The live file as an item that can be moved to its final name; None where nothing was copied.

        Raises:
            OSError: the destination fails.
        """
        if not self._current(log) or not self._open_live(log, create=False):
            return None
        assert log.directory is not None
        name = log.state.live.rpartition("/")[2]
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=log.directory.fd)
        candidate = Candidate(log.directory, name, log.state.source, log.state.origin, claimed=True)
        item = Item(candidate, fd, os.fstat(fd), leased=False)
        item.claim = log.directory
        item.claim_path = claim_path(log)
        item.day = log.state.day
        item.in_destination = True
        return item

    def next_generation(self, log: Log) -> Log | None:
        """The live file has its final name: go on in another."""
        log.close_live()
        generation = log.state.generation + 1
        state = replace(log.state, generation=generation, live=self._live_path(log.id, log.state, generation))
        self._store(log.id, state)
        detail = "it was cut or changed: what it had held is kept, and it is followed anew"
        self._tell(Event("truncated", state.source, detail))
        self._reload(log)
        return self.logs.get(log.id)

    def ended(self, log: Log) -> bool:
        """Whether a log that the scan did not see is gone for good, so that its live file is all there is.

        Asked after a whole scan of its unit. A rename during the scan can hide a file from it.
        """
        if log.fd < 0:
            log.missed += 1
            return log.missed >= 2
        if lease.refused(log.fd):
            return False  # its writer goes on, though the file has no name that we know
        info = os.fstat(log.fd)
        if info.st_nlink == 0:
            return True
        log.missed += 1
        return log.missed >= 3

    def drop(self, id: str) -> None:
        """The log is where it belongs: its live file and what is kept of it go, in this order.

        Raises:
            OSError: the destination fails; the claim is to stay then.
        """
        log = self.logs.get(id)
        if log is None:
            return
        place, name = self._locate(log.state.live)
        if place is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place.fd)
        self._forget_copy(log)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{id}.json", dir_fd=self._states.fd)
        self._forget(id)

    def growing(self) -> Iterator[Log]:
        """The logs that have changed since they were copied, told by their size alone."""
        for log in list(self.logs.values()):
            if log.fd >= 0 and os.fstat(log.fd).st_size != log.size:
                yield log

    def close(self) -> None:
        for log in self.logs.values():
            log.close()
        self.logs.clear()

    def _begin(self, id: str, candidate: Candidate, info: os.stat_result) -> Log:
        origin = candidate.origin
        day = day_of(origin, info.st_mtime_ns)
        log_day = origin.day.toordinal() if origin.day else None
        state = State(candidate.path, origin.kind, origin.container, origin.below, log_day, day, "")
        state = replace(state, live=self._live_path(id, state, 0))
        self._store(id, state)
        self._tell(Event("followed", candidate.path, state.live))
        log = self._load(id)
        assert log is not None
        return log

    def _live_path(self, id: str, state: State, generation: int) -> str:
        above, _, name = self._template.target(state.origin, state.day).rpartition("/")
        tail = os.fsencode(f"~{id}{f'.{generation}' if generation else ''}{LIVE}")
        base = os.fsdecode(os.fsencode(name)[: MAX_NAME_BYTES - len(tail)] + tail)
        return f"{above}/{base}" if above else base

    def _store(self, id: str, state: State) -> None:
        # Durable before the live file is: a live file that nobody knows of would stay for ever.
        with publish(f"/proc/self/fd/{self._states.fd}/{id}.json", replace=True) as file:
            file.write(json.dumps(asdict(state)))

    def _load(self, id: str) -> Log | None:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{id}.json", flags, dir_fd=self._states.fd)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(fd)
            state = State(**json.loads(os.read(fd, _MAX_STATE)))
        except (ValueError, TypeError):
            self._tell(Event("failed", f"{self._states.shown}/{id}.json", "it is damaged: look at it, and remove it"))
            return None
        finally:
            os.close(fd)
        log = Log(id, state, (info.st_ino, info.st_mtime_ns))
        self.logs[id] = log
        self.inodes.add(int(id.partition("-")[0], 16))
        return log

    def _reload(self, log: Log) -> None:
        fd, log.fd = log.fd, -1
        seen = log.seen
        self._forget(log.id)
        again = self._load(log.id)
        if again is None:
            if fd >= 0:
                os.close(fd)
            return
        again.fd, again.seen = fd, seen

    def _forget(self, id: str) -> None:
        log = self.logs.pop(id, None)
        if log is not None:
            log.close()
            self.inodes = {int(other.partition("-")[0], 16) for other in self.logs}

    def _current(self, log: Log) -> bool:
        """Whether the log is followed still, as we know it; another sidecar may have gone on with it."""
        try:
            info = os.stat(f"{log.id}.json", dir_fd=self._states.fd, follow_symlinks=False)
        except FileNotFoundError:
            self._forget(log.id)
            return False
        if (info.st_ino, info.st_mtime_ns) != log.stored:
            self._reload(log)
            return False  # the next step has it
        return self.logs.get(log.id) is log

    def _locate(self, path: str) -> tuple[Directory | None, str]:
        *parents, name = path.split("/")
        directory = self._destination.root
        try:
            for parent in parents:
                directory = directory.open(parent)
        except FileNotFoundError:
            return None, name
        return directory, name

    def _open_live(self, log: Log, create: bool = True) -> bool:
        """Open the live file. A missing one of a log that was copied before means its generation is over."""
        if log.live >= 0:
            if os.fstat(log.live).st_nlink:
                return True
            log.close_live()
        path = log.state.live
        directory, name = self._locate(path)
        if directory is not None:
            with contextlib.suppress(FileNotFoundError):
                log.live = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
                log.directory = directory
                return True
        if not create:
            return False
        self._destination.begin()
        directory, name = self._destination.locate(path)
        # A copy of an earlier generation of that number, left by a kill: it must not be taken for ours.
        self._forget_copy(log)
        log.live = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory.fd
        )
        log.directory = directory
        self._dress(log.live, os.fstat(log.fd))
        return True

    def _forget_copy(self, log: Log) -> None:
        """A mover that was killed may have left the name of the live file's compressed copy."""
        staging = self._destination.staging(self._spool_id, "follow")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staging_name(claim_path(log)), dir_fd=staging.fd)

    def _agrees(self, log: Log, have: int, fd: int = -1) -> bool:
        """Whether the log still holds, before the checkpoint, what was copied."""
        length = min(_CHECKED, have)
        source = log.fd if fd < 0 else fd
        return os.pread(log.live, length, have - length) == os.pread(source, length, have - length)

    def _copy(self, log: Log, have: int, size: int) -> int:
        os.lseek(log.live, have, os.SEEK_SET)
        offset = have
        while offset < size and (sent := os.sendfile(log.live, log.fd, offset, min(_AT_A_TIME, size - offset))):
            offset += sent
        return offset - have
