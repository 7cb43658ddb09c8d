"""Short visits to the other containers while the backlog of one is moved.

A scan goes through the containers one after the other. Without visits every other container would wait until the
whole backlog of one is moved, however many files a single replica makes.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

from sharedvol_sidecar.spool.scanner import Candidate, Scanner

CONTAINERS = 100
"""Containers that one visit goes to at most. The next visit continues where it ended."""

FILES = 250
"""Files of one container that a visit looks at. A container with more waits for its turn in the scan."""

BYTES = 64 * 1024 * 1024
"""Bytes of one container that a visit reads; a larger file is the only one."""

SCANNED = 20_000
"""Files that a scan looks at, and leaves, until the others are visited all the same."""


class Visits:
    """Goes round the directories at the top of the spool, a part of the round at each visit.

    Args:
        scanner: reads the spool; not the one of the scan that is under way.
    """

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._round: Generator[os.DirEntry[str], None, None] | None = None

    def close(self) -> None:
        """End the round; the next visit begins another."""
        if self._round is not None:
            self._round.close()
            self._round = None
            self._scanner.unread.clear()

    def containers(self, busy: str | None) -> Iterator[os.DirEntry[str]]:
        """The directories that are next, each once, without the one that is being scanned."""
        whole = False
        seen: set[str] = set()
        while len(seen) < CONTAINERS:
            if self._round is None:
                self._round, whole = self._scanner.top(), True
            entry = next(self._round, None)
            if entry is None:
                self.close()
                if whole:
                    return
                continue
            if entry.name in seen:
                return
            seen.add(entry.name)
            if entry.name != busy:
                yield entry

    def candidates(self, entry: os.DirEntry[str]) -> Generator[Candidate, None, None]:
        """The first files of one directory. Close the generator."""
        found = self._scanner.within(entry)
        try:
            for _, candidate in zip(range(FILES), found, strict=False):
                yield candidate
        finally:
            found.close()
