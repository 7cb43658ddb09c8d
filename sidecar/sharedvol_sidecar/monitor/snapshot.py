"""What the service does, as plain data: made by the board, shown by the status page, metrics and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from sharedvol_sidecar.counters import COUNTERS, Counter, PassCounts, Reason
from sharedvol_sidecar.events import BY_EVENT
from sharedvol_sidecar.monitor.log_output import LogState
from sharedvol_sidecar.monitor.throughput import Minute

OTHER: Final = "other"
"""The containers that are not shown one by one, as if they were one."""

STOPPING: Final = "stopping"
STALLED: Final = "stalled"
STARTING: Final = "starting"

REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        STOPPING: "a signal told it to end: what is under way is finished first",
        STALLED: "the main loop has not been heard of for too long: a system call hangs, or the disk does",
        "destination_full": "no space or no inodes left where files are collected into: make room",
        "destination_unavailable": "the destination is gone, read-only or fails: see that its volume is mounted",
        "spool_full": "no space or no inodes left in the spool: make room, collecting makes more",
        "spool_unavailable": "the spool is gone or fails: see that its volume is mounted",
        "permission": "a directory may not be read or written: run as the replicas' user, or give it permission",
        "descriptors": "too many files are open: raise the limit of open files (ulimit -n, or ulimits: nofile)",
        "catalog_unavailable": "the catalog's database does not answer; files are collected all the same",
        "free_space_floor": "less space is free than is to be kept free: make room",
        STARTING: "it began a moment ago, or the first pass is long or does not end well",
    }
)
"""Why it is not ready, and what that means. A fault of another name is shown, too, without an explanation."""

FAULTS: Final = tuple(reason for reason in REASONS if reason not in (STOPPING, STALLED, STARTING))

ALL: Final = (*COUNTERS, *BY_EVENT.values())
"""Every counter."""

PASS_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histogram of passes, in seconds."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as its presence shows it.

    Attributes:
        name: the container.
        alive: whether it holds its presence; None where nobody can tell.
        slot: its stable number, if it has one.
        since: when it came or was seen last, in seconds since the epoch.
    """

    name: str
    alive: bool | None
    slot: int | None
    since: float | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the service is not ready; ``since`` in seconds since the epoch."""

    reason: str
    detail: str
    since: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a list: an event and when it was, in seconds since the epoch."""

    at: float
    name: str
    path: str
    detail: str
    container: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Files of a container that wait to be collected."""

    container: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Passes:
    """How long the passes took.

    Attributes:
        count: all of them.
        seconds: together.
        buckets: how many took at most as long as each of `PASS_BUCKETS`, not cumulated; the last is the rest.
        last: when the last one ended, in seconds since the epoch.
    """

    count: int
    seconds: float
    buckets: tuple[int, ...]
    last: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The board at one moment.

    Attributes:
        at, started: now and when the service began, in seconds since the epoch.
        uptime: seconds in between, by a clock that is never set.
        heard: seconds since the main loop was heard of.
        alive: whether that is within the bound.
        faults: why it is not ready; empty when it is. The first is the one to act upon.
        moved: what was done since the start. Its counts of what was left are 0.
        left: the counts of the last pass.
        followed_logs: logs that are followed now.
        by_event: the counters of what happens outside of passes, by name.
        onsets: of what is left and counted once while it stays, how often it began, by the counter's name.
        fault_onsets: how often each fault began, by reason.
        happened: how often each event was logged, by name.
        backlog: of the 200 largest backlogs, the largest first.
        backlog_rest: all others together, or None.
        replicas: the first 200, the living first.
        replicas_alive, replicas_dead, replicas_unknown: how many, of all.
        minutes: the throughput of the last hour, the oldest minute first.
        recent, recent_errors, recent_dropped, notes: the last 20 of each, the newest first.
        log: how well the log is written.
        warnings: what a person should change, and does not make the service unready.
    """

    at: float
    started: float
    uptime: float
    heard: float
    alive: bool
    faults: tuple[Fault, ...]
    moved: PassCounts
    left: PassCounts
    followed_logs: int
    by_event: Mapping[str, int]
    onsets: Mapping[str, int]
    fault_onsets: Mapping[str, int]
    happened: Mapping[str, int]
    passes: Passes
    backlog: tuple[Backlog, ...]
    backlog_rest: Backlog | None
    replicas: tuple[ReplicaView, ...]
    replicas_alive: int
    replicas_dead: int
    replicas_unknown: int
    minutes: tuple[Minute, ...]
    recent: tuple[Entry, ...]
    recent_errors: tuple[Entry, ...]
    recent_dropped: tuple[Entry, ...]
    notes: tuple[Entry, ...]
    log: LogState = field(default_factory=LogState)
    warnings: tuple[Fault, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether nothing speaks against sending it work."""
        return not self.faults

    def value(self, counter: Counter) -> int:
        """Return what a counter stands at."""
        if counter.name in self.by_event:
            return self.by_event[counter.name]
        count: int = getattr(self.moved if counter.kind == "done" else self.left, counter.name)
        return count

    def by_reason(self, metric: str) -> dict[str, int]:
        """Return the values of a metric that several counters share, by reason."""
        found: dict[str, int] = {}
        for counter in ALL:
            for place, count in (
                (counter.metric, self.value(counter)),
                (counter.onset, self.onsets.get(counter.name, 0)),
            ):
                if isinstance(place, Reason) and place.metric == metric:
                    found[place.reason] = found.get(place.reason, 0) + count
        return found

    @property
    def errors(self) -> dict[str, int]:
        """What went wrong, by reason."""
        return {**self.by_reason("errors"), **self.fault_onsets}

    @property
    def dropped(self) -> dict[str, int]:
        """What is not collected and will not be as it is, by reason."""
        return self.by_reason("dropped")

    @property
    def backlog_files(self) -> int:
        """All files that wait."""
        return sum(one.files for one in self._all_backlog())

    @property
    def backlog_bytes(self) -> int:
        """Their bytes."""
        return sum(one.bytes for one in self._all_backlog())

    def _all_backlog(self) -> tuple[Backlog, ...]:
        return (*self.backlog, self.backlog_rest) if self.backlog_rest is not None else self.backlog
