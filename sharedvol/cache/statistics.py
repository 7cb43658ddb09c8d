"""What a cache reports about itself."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """What `Cache.statistics` returns.

    Attributes:
        entries: how many entries are stored, including expired ones.
        bytes: their size on the volume, including headers.
        hits: how often this process found an entry.
        waits: how often this process got an entry that another process, thread or task had just computed for it.
        computed: how often this process had to compute (the misses).
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
        expired: entries older than ``max_age``, and files with the name of an entry that are not entries.
        evicted: the least recently used entries, to come below ``max_bytes``.
        temporaries: incomplete files of dead writers.
        locks: lock files of processes that died while they computed.
    """

    expired: int
    evicted: int
    temporaries: int
    locks: int


class Counts:
    """Counts what a process did. A forked child begins at zero."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # Re-entrant: a signal handler may use a cache while its thread counts.
        self._pid, self._mutex = os.getpid(), threading.RLock()
        self._hits = self._waits = self._computed = 0

    def add(self, hits: int = 0, waits: int = 0, computed: int = 0) -> None:
        """Add to the counts."""
        if self._pid != os.getpid():
            self._begin()
        with self._mutex:
            self._hits += hits
            self._waits += waits
            self._computed += computed

    def values(self) -> tuple[int, int, int]:
        """Return hits, waits and computations."""
        self.add()
        return self._hits, self._waits, self._computed
