"""The records of followed logs: for each log, where its copy is and where the log comes from.

One small file for each log, replaced as a whole: ``.sharedvol/follow/<spool>/<identity>.json``. Every sidecar reads
them. Only the sidecar that holds the lock on the log's unit writes one, so what was read before that lock was taken
may be out of date: `FollowStore.refresh` runs after each lock, and `FollowStore.current` before each step.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import date as Date

from sharedvol import AlreadyPublishedError, publish
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.changes import Changes
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.inode import inode_of
from sharedvol_sidecar.spool.layout import Origin

MAX_STATE = 1_000_000
"""Bytes of a record at most: three paths of 64 names, each byte of which may be written as six."""

SEAL = ".seal"
"""What the notes on sealed copies end with, which are next to the records (`follow_seals`)."""


@dataclass(frozen=True, slots=True)
class FollowState:
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


class FollowedLog:
    """One followed log. ``fd`` is -1 until this process, which may have started later, has seen the log.

    Attributes:
        known_since: how many records this process had read when it read this one.
        in_sight: whether this process has seen the log, and has not missed it for long since.
        missed: whole scans of its unit in a row that did not see it.
        missed_at: the time of the first of them, by the monotonic clock.
        short: whether this pass found no room for more of it.
        marks: which of this process's marks are on the live copy, see `follow_marks`.
    """

    __slots__ = (
        "directory",
        "fd",
        "grew_at",
        "id",
        "in_sight",
        "known_since",
        "live",
        "marks",
        "missed",
        "missed_at",
        "seen",
        "short",
        "size",
        "state",
        "stored",
    )

    def __init__(self, id: str, state: FollowState, stored: tuple[int, int, int], known_since: int) -> None:
        self.id, self.state, self.stored, self.known_since = id, state, stored, known_since
        self.fd = self.live = -1
        self.directory: Directory | None = None
        self.seen = self.in_sight = self.short = False
        self.marks = (False, False)
        self.missed = 0
        self.size = 0
        self.grew_at = self.missed_at = time.monotonic()

    @classmethod
    def of(cls, id: str, state: FollowState) -> FollowedLog:
        """A log of which no record is stored."""
        return cls(id, state, (0, 0, 0), 0)

    def see(self) -> None:
        """The scan found the log."""
        self.seen = self.in_sight = True
        self.missed = 0

    def miss(self) -> None:
        """A whole scan of its unit did not find the log."""
        if not self.missed:
            self.missed_at = time.monotonic()
        self.missed += 1

    @property
    def is_hidden(self) -> bool:
        """Whether the log is open here, and no scan finds it: it was deleted, or was not seen by the last scan."""
        return self.fd >= 0 and (self.missed > 0 or not os.fstat(self.fd).st_nlink)

    def close(self) -> None:
        self.close_live()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close_live(self) -> None:
        if self.live >= 0:
            os.close(self.live)
            self.live = -1
        self.marks = (False, False)
        self.directory = None


class FollowStore:
    """The records of one spool's logs, and what this process has open of them.

    Args:
        directory: where they are.
        events: receives each record that is damaged.
    """

    def __init__(self, directory: Directory, events: Events) -> None:
        self._directory, self._events = directory, events
        self.logs: dict[str, FollowedLog] = {}
        self.inodes: set[int] = set()
        """The inodes of the followed logs: what has none of these is not followed."""
        self.loaded = 0
        """How many records were read so far: a log with a higher `FollowedLog.known_since` was not known before."""
        self.damaged: set[str] = set()
        """The ids of the records that cannot be read."""
        self.seals: set[str] = set()
        """The names of the notes on sealed copies, as of the last `refresh`."""
        self._changes = Changes(directory)
        self.refresh()

    def has_inode(self, inode: int) -> bool:
        """Return whether a file with this inode may be a followed log."""
        return inode in self.inodes

    def new_pass(self) -> None:
        """Begin a pass: no log was seen yet."""
        self.refresh()
        for log in self.logs.values():
            log.seen = log.short = False

    def refresh(self) -> None:
        """Learn what other sidecars follow, and forget what they have finished. Cheap where nothing changed."""
        if not self._changes.poll():
            return
        names = os.listdir(self._directory.fd)
        self.seals = {name for name in names if name.endswith(SEAL)}
        ids = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        for id in ids - self.logs.keys():
            self.load(id)
        self.damaged &= ids
        for id in self.logs.keys() - ids:
            self.forget(id)

    def create(self, id: str, state: FollowState) -> FollowedLog | None:
        """Write a log's first record, durably, before its live copy exists. Another sidecar's record is kept.

        Returns:
            The log by the record that is there now; None where that record is damaged.
        """
        with contextlib.suppress(AlreadyPublishedError), publish(self._path(id)) as file:
            file.write(json.dumps(asdict(state)))
        return self.load(id)

    def replace(self, log: FollowedLog, state: FollowState) -> FollowedLog | None:
        """Replace a record by the log's next one, durably. None if the record is not the one that ``log`` knows."""
        if self.current(log) is not log:
            return None
        with publish(self._path(log.id), replace=True) as file:
            file.write(json.dumps(asdict(state)))
        return self._reload(log)

    def load(self, id: str) -> FollowedLog | None:
        """Read a record; None where there is none that can be read."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{id}.json", flags, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(fd)
            state = FollowState(**json.loads(os.read(fd, MAX_STATE)))
            inode = inode_of(id)
        except (ValueError, TypeError):
            path = f"{self._directory.shown}/{id}.json"
            self.damaged.add(id)
            self._events.damaged_record(path, "what is kept of a followed log is damaged: look at it, and remove it")
            return None
        finally:
            os.close(fd)
        self.damaged.discard(id)
        self.loaded += 1
        log = self.logs[id] = FollowedLog(id, state, _version(info), self.loaded)
        self.inodes.add(inode)
        return log

    def forget(self, id: str) -> None:
        """Close what is open of it; the record stays."""
        log = self.logs.pop(id, None)
        if log is not None:
            log.close()
            self.inodes = {inode_of(other) for other in self.logs}

    def remove(self, id: str) -> None:
        """The log is not followed any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{id}.json", dir_fd=self._directory.fd)
        self.forget(id)

    def current(self, log: FollowedLog) -> FollowedLog | None:
        """The log by its record as it is now: itself, or another where a sidecar has continued it; None if it ended.

        Call it with the lock on the log's unit: only then does the answer stay true.
        """
        try:
            info = os.stat(f"{log.id}.json", dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            self.forget(log.id)
            return None
        known = self.logs.get(log.id)
        if known is not None and _version(info) == known.stored:
            return known
        return self._reload(known) if known is not None else self.load(log.id)

    def close(self) -> None:
        """Close all. Does nothing the second time."""
        for id in list(self.logs):
            self.forget(id)
        self._directory.close()

    def _path(self, id: str) -> str:
        return f"/proc/self/fd/{self._directory.fd}/{id}.json"

    def _reload(self, log: FollowedLog) -> FollowedLog | None:
        """Read it again, and keep the log itself open."""
        fd, log.fd = log.fd, -1
        seen, in_sight = log.seen, log.in_sight
        self.forget(log.id)
        again = self.load(log.id)
        if again is not None:
            again.fd, again.seen, again.in_sight = fd, seen, in_sight
        elif fd >= 0:
            os.close(fd)
        return again


def _version(info: os.stat_result) -> tuple[int, int, int]:
    """Tell a record from the one that replaced it: `publish` may give both one modification time."""
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns
