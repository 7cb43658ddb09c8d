"""What is kept of each followed log, beside the files: where its copy lies, and whose it is.

One small file for each log, replaced as a whole: ``.sharedvol/follow/<spool>/<identity>.json``. Written by whoever
has the log's unit, read by every sidecar.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import date as Date

from sharedvol import publish
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.inodes import inode_of
from sharedvol_sidecar.layout import Origin
from sharedvol_sidecar.report import Event, Listener

_MAX_STATE = 1_000_000  # three paths of 64 names, each byte of which may be written as six


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

    __slots__ = ("directory", "fd", "grew_at", "id", "live", "missed", "seen", "size", "state", "stored")

    def __init__(self, id: str, state: State, stored: tuple[int, int]) -> None:
        self.id, self.state, self.stored = id, state, stored
        self.fd = self.live = -1
        self.directory: Directory | None = None
        self.seen = False
        self.missed = 0
        self.size = 0
        self.grew_at = time.monotonic()

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


class Records:
    """The records of one spool's logs, and what this process has open of them.

    Args:
        directory: where they are.
        tell: told of one that is damaged.
    """

    def __init__(self, directory: Directory, tell: Listener) -> None:
        self._directory, self._tell = directory, tell
        self.logs: dict[str, Log] = {}
        self.inodes: set[int] = set()
        """The inodes of the followed logs: what has none of these is not followed."""
        self.refresh()

    def refresh(self) -> None:
        """Learn what other sidecars follow, and forget what they have finished."""
        with os.scandir(self._directory.fd) as entries:
            ids = {entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")}
        for id in ids - self.logs.keys():
            self.load(id)
        for id in self.logs.keys() - ids:
            self.forget(id)
        for log in self.logs.values():
            log.seen = False

    def store(self, id: str, state: State) -> None:
        """Write a record, durably: before the live file is there, or nobody would know of that."""
        with publish(f"/proc/self/fd/{self._directory.fd}/{id}.json", replace=True) as file:
            file.write(json.dumps(asdict(state)))

    def load(self, id: str) -> Log | None:
        """Read a record; None where there is none that can be read."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{id}.json", flags, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(fd)
            state = State(**json.loads(os.read(fd, _MAX_STATE)))
            inode = inode_of(id)
        except (ValueError, TypeError):
            path = f"{self._directory.shown}/{id}.json"
            self._tell(Event("failed", path, "what is kept of a followed log is damaged: look at it, and remove it"))
            return None
        finally:
            os.close(fd)
        log = self.logs[id] = Log(id, state, (info.st_ino, info.st_mtime_ns))
        self.inodes.add(inode)
        return log

    def reload(self, log: Log) -> Log | None:
        """Read it again, and keep the log itself open."""
        fd, log.fd = log.fd, -1
        seen = log.seen
        self.forget(log.id)
        again = self.load(log.id)
        if again is not None:
            again.fd, again.seen = fd, seen
        elif fd >= 0:
            os.close(fd)
        return again

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

    def is_current(self, log: Log) -> bool:
        """Whether the log is followed still, and as we know it; another sidecar may have gone on with it."""
        try:
            info = os.stat(f"{log.id}.json", dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            self.forget(log.id)
            return False
        if (info.st_ino, info.st_mtime_ns) != log.stored:
            self.reload(log)
            return False  # the next step has it
        return self.logs.get(log.id) is log

    def close(self) -> None:
        """Close all."""
        for id in list(self.logs):
            self.forget(id)
