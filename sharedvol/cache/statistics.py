"""What a cache tells about itself."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """What `Cache.statistics` returns.

    Attributes:
        entries: the entries that are stored, expired ones included.
        bytes: their size on the volume, headers included.
        hits: how often this process found an entry.
        waits: how often this process got an entry that another process, thread or task had just computed for it.
        computed: how often this process had to compute: the misses.
    """

    entries: int
    bytes: int
    hits: int
    waits: int
    computed: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What `Cache.trim` removed.

    Attributes:
        expired: entries older than ``max_age``, and files that are no entries under the names of such.
        evicted: the least recently used entries, to come below ``max_bytes``.
        temporaries: half-written files of dead writers.
        locks: lock files of dead computers.
    """

    expired: int
    evicted: int
    temporaries: int
    locks: int


class Counts:
    """What a process did; a forked child begins at zero."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # Re-entrant: a signal handler may use a cache while its thread counts.
        self._pid, self._mutex = os.getpid(), threading.RLock()
        self._hits = self._waits = self._computed = 0

    def add(self, hits: int = 0, waits: int = 0, computed: int = 0) -> None:
        """Count."""
        if self._pid != os.getpid():
            self._begin()
        with self._mutex:
            self._hits += hits
            self._waits += waits
            self._computed += computed

    def values(self) -> tuple[int, int, int]:
        """Hits, waits, computed."""
        self.add()
        return self._hits, self._waits, self._computed
