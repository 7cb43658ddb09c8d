"""The picture of what the service does: drawn by its main thread, read by the HTTP server's."""

from __future__ import annotations

import heapq
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import get_args

from sharedvol_sidecar.counters import ONSETS, PassCounts
from sharedvol_sidecar.event import Event, Page
from sharedvol_sidecar.events import BY_EVENT
from sharedvol_sidecar.humanize import LONGEST, duration
from sharedvol_sidecar.monitor.log_output import LogState
from sharedvol_sidecar.monitor.snapshot import (
    FAULTS,
    OTHER,
    PASS_BUCKETS,
    STALLED,
    STARTING,
    STOPPING,
    Backlog,
    Entry,
    Fault,
    Passes,
    ReplicaView,
    Snapshot,
)
from sharedvol_sidecar.monitor.throughput import Throughput

PATIENCE = 60.0
"""Seconds of silence after which the main loop counts as hung: an fsync of a slow disk takes long, too."""

CONTAINERS = 200
"""Containers that are shown one by one; the rest is summed."""

LISTED = 20
"""Entries of each list."""

_Line = tuple[float, str, str, str, str, int | None]
"""When an entry was listed, its name, path, detail, container and size."""


class ServiceState:
    """What the service tells of itself. Its memory is bounded, whatever is told.

    Everything but `picture` is for the service's thread: each call is also a sign of life. No call blocks for
    longer than another thread takes to copy some hundred numbers.

    Args:
        patience: seconds without a sign of life after which the service counts as hung.
        clock: a monotonic clock, in seconds.
        wall: the time of day, in seconds since the epoch; shown, never calculated with.
        log: returns how well the log is written.
    """

    def __init__(
        self,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        log: Callable[[], LogState] = LogState,
    ) -> None:
        self._patience, self._clock, self._wall, self._log = patience, clock, wall, log
        self._lasting, self._onsets = dict.fromkeys(ONSETS, 0), dict.fromkeys(ONSETS, 0)
        self._lock = threading.Lock()
        self._began = self._heard = clock()
        self._started = wall()
        self._stopping: float | None = None
        self._first_pass_over = False
        self._faults: dict[str, Fault] = {}
        self._moved, self._left, self._this_pass = PassCounts(), PassCounts(), PassCounts()
        self._passes, self._pass_seconds = 0, 0.0
        self._pass_buckets = [0] * (len(PASS_BUCKETS) + 1)
        self._last_pass: float | None = None
        self._followed_logs = 0
        self._by_event: dict[str, int] = dict.fromkeys(BY_EVENT, 0)
        self._happened: Counter[str] = Counter()
        self._fault_onsets: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._backlog: tuple[Backlog, ...] = ()
        self._backlog_rest: Backlog | None = None
        self._replicas: tuple[ReplicaView, ...] = ()
        self._warnings: dict[tuple[str, str], Fault] = {}
        self._replica_states: Counter[bool | None] = Counter()
        self._throughput = Throughput()
        self._lists: dict[Page, deque[_Line]] = {page: deque(maxlen=LISTED) for page in get_args(Page)}

    def beat(self) -> None:
        """The main loop lives: call it every few seconds and in each batch. Takes no lock."""
        self._heard = self._clock()

    def stopping(self) -> None:
        """The service is to end: not ready from here on. Takes no lock, so a signal handler may call it."""
        if self._stopping is None:
            self._stopping = self._wall()

    def pass_began(self) -> None:
        """A pass begins: what `progress` said of one that failed half-way stays counted."""
        self.beat()
        with self._lock:
            self._this_pass = PassCounts()

    def progress(self, counts: PassCounts) -> PassCounts:
        """Count the pass under way, so far, and return what is new. Without it a long pass is counted at its end."""
        self.beat()
        with self._lock:
            return self._count(counts)

    def passed(self, counts: PassCounts, seconds: float) -> None:
        """A pass has ended well, with these counts, after ``seconds``. The first one ends ``starting``."""
        self.beat()
        with self._lock:
            self._count(counts)
            self._this_pass = PassCounts()
            self._left = replace(counts)
            self._passes += 1
            self._pass_seconds += seconds
            self._pass_buckets[bisect_left(PASS_BUCKETS, seconds)] += 1
            self._last_pass = self._wall()
            self._first_pass_over = True

    def moved(self, counts: PassCounts) -> None:
        """Count what was moved between two passes."""
        self.beat()
        with self._lock:
            self._add_moved(counts)

    def left(self, counts: PassCounts, whole: bool) -> None:
        """Count the problems that a pass found, each file once while it stays.

        Args:
            counts: the pass's counts.
            whole: whether it read all of the spool. If not, what it did not find may be there all the same.
        """
        self.beat()
        with self._lock:
            for name, before in self._lasting.items():
                now = getattr(counts, name)
                self._onsets[name] += max(0, now - before)
                self._lasting[name] = now if whole else max(now, before)

    def event(self, event: Event) -> None:
        """List an event, and count it if a counter of its own is declared for it."""
        self.beat()
        kind = event.kind
        with self._lock:
            self._happened[kind.name] += 1
            if kind.counts is not None:
                self._by_event[kind.counts.name] += 1
            self._list(kind.page, kind.name, event.path, event.detail, event.container, event.size)

    def backlog(self, waiting: Mapping[str, tuple[int, int]]) -> None:
        """What waits in the spool now: container to files and bytes, of all others under the empty name."""
        self.beat()
        named = (item for item in waiting.items() if item[0])
        largest = heapq.nlargest(CONTAINERS, named, key=lambda item: (item[1], item[0]))
        files = sum(count for count, _ in waiting.values()) - sum(count for _, (count, _) in largest)
        size = sum(count for _, count in waiting.values()) - sum(count for _, (_, count) in largest)
        with self._lock:
            self._backlog = tuple(Backlog(_cut(name), *counts) for name, counts in largest)
            self._backlog_rest = Backlog(OTHER, files, size) if len(waiting) > len(largest) else None

    def replicas(self, views: Iterable[ReplicaView], states: Counter[bool | None] | None = None) -> None:
        """Show the replicas that are known now.

        Args:
            views: of those that may be shown.
            states: how many are alive, dead and unknown, where there are more than ``views``.
        """
        self.beat()
        known = sorted(views, key=lambda view: (view.alive is not True, view.name))
        with self._lock:
            self._replicas = tuple(known[:CONTAINERS])
            self._replica_states = Counter(view.alive for view in known) if states is None else states

    def followed(self, logs: int) -> None:
        """So many logs are followed now."""
        self.beat()
        with self._lock:
            self._followed_logs = logs

    def fault(self, reason: str, detail: str) -> None:
        """Not ready from here on, until `clear`. An error is counted when it begins, not when it is told again."""
        self.beat()
        with self._lock:
            known = self._faults.get(reason)
            self._faults[reason] = Fault(reason, _cut(detail), known.since if known else self._wall())
            if known is None:
                self._fault_onsets[reason] = self._fault_onsets.get(reason, 0) + 1
                self._list("errors", reason, "", detail)

    def warn(self, reason: str, details: Iterable[str]) -> None:
        """Show these warnings of a reason from here on, and no others of it. They do not make the service unready."""
        now = self._wall()
        with self._lock:
            kept = {key: one for key, one in self._warnings.items() if key[0] != reason}
            new = ((reason, _cut(detail)) for detail in details)
            self._warnings = kept | {key: self._warnings.get(key) or Fault(*key, now) for key in new}

    def clear(self, reason: str) -> None:
        """The fault is over; nothing happens if there was none."""
        self.beat()
        with self._lock:
            if self._faults.pop(reason, None) is not None:
                self._list("notes", "mended", "", reason)

    def picture(self) -> Snapshot:
        """The board now; for any thread."""
        now, log = self._clock(), self._log()
        with self._lock:
            heard = max(0.0, now - self._heard)
            return Snapshot(
                at=self._wall(),
                started=self._started,
                uptime=now - self._began,
                heard=heard,
                alive=heard <= self._patience,
                faults=self._reasons(heard),
                moved=replace(self._moved),
                left=replace(self._left),
                followed_logs=self._followed_logs,
                by_event=dict(self._by_event),
                onsets=dict(self._onsets),
                fault_onsets=dict(self._fault_onsets),
                happened=dict(self._happened),
                passes=Passes(self._passes, self._pass_seconds, tuple(self._pass_buckets), self._last_pass),
                backlog=self._backlog,
                backlog_rest=self._backlog_rest,
                replicas=self._replicas,
                replicas_alive=self._replica_states[True],
                replicas_dead=self._replica_states[False],
                replicas_unknown=self._replica_states[None],
                minutes=self._throughput.minutes(now),
                recent=self._entries("recent"),
                recent_errors=self._entries("errors"),
                recent_dropped=self._entries("dropped"),
                notes=self._entries("notes"),
                log=log,
                warnings=tuple(self._warnings.values()),
            )

    def _reasons(self, heard: float) -> tuple[Fault, ...]:
        """What to act upon first comes first; that it is starting tells less than why it does not get on."""
        found = list(self._faults.values())
        if heard > self._patience:
            told = f"the main loop was heard of {duration(heard)} ago"
            found.insert(0, Fault(STALLED, told, self._wall() - heard))
        if self._stopping is not None:
            found.insert(0, Fault(STOPPING, "told to end by a signal", self._stopping))
        if not self._first_pass_over:
            found.append(Fault(STARTING, "the first pass has not ended yet", self._started))
        return tuple(found)

    def _count(self, counts: PassCounts) -> PassCounts:
        news, self._this_pass = counts.since(self._this_pass), replace(counts)
        self._add_moved(news)
        return news

    def _add_moved(self, news: PassCounts) -> None:
        self._moved.add_moved(news)
        self._throughput.add(self._clock(), news.collected, news.bytes + news.followed)

    def _list(
        self, page: Page, name: str, path: str, detail: str, container: str = "", size: int | None = None
    ) -> None:
        self._lists[page].appendleft((self._wall(), name, path, detail, container, size))

    def _entries(self, page: Page) -> tuple[Entry, ...]:
        # Only when a snapshot is taken: of thousands of events a few are ever shown.
        return tuple(
            Entry(at, name, _cut(path), _cut(detail), _cut(container), size)
            for at, name, path, detail, container, size in self._lists[page]
        )


def _cut(text: str) -> str:
    """As much as is ever shown: a name that is longer is known to be by its one letter more."""
    return text[: LONGEST + 1]
