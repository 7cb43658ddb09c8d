"""Compare the catalog with the files: find what was changed, is missing, or has neither row nor record."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog, Filters, Row, clamped
from sharedvol_sidecar.catalog.files import CollectedFiles, Found, digest, is_plain, open_file
from sharedvol_sidecar.fs.directory import Directory

CHANGED, MISSING, UNCATALOGUED, UNREADABLE = "changed", "missing", "uncatalogued", "unreadable"
ABANDONED = "abandoned"
PROBLEMS = (CHANGED, MISSING, UNCATALOGUED, ABANDONED, UNREADABLE)

_LIVE_COPY = re.compile(r"~[0-9a-f]+-[0-9a-f]+(\.[0-9]+)?\.live\Z")
"""The end of a live copy's name. Another file whose name ends in ``.live`` is not a sidecar's."""

_GROUP = 500
_UNDER_WAY_NS = 60 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference between catalog and files; ``problem`` is one of `PROBLEMS`."""

    problem: str
    path: str
    detail: str


@dataclass(slots=True)
class Verified:
    """Counts of one verification.

    Attributes:
        files: files in the catalog that were compared.
        bytes: bytes that were read.
        without_digest: files whose row has no digest, so that only their size was compared.
        changed: files that differ from their row.
        missing: rows without a file.
        uncatalogued: files without a row.
        abandoned: live copies without a record, which no sidecar will finish.
        unreadable: files and directories that could not be read.
        unwatched: live copies whose logs no running sidecar sees or reads. The next sidecar with the right settings
            finishes them, so they do not count as a problem.
    """

    files: int = 0
    bytes: int = 0
    without_digest: int = 0
    changed: int = 0
    missing: int = 0
    uncatalogued: int = 0
    abandoned: int = 0
    unreadable: int = 0
    unwatched: int = 0

    @property
    def good(self) -> bool:
        """Return whether there is no problem."""
        return not any(getattr(self, problem) for problem in PROBLEMS)

    def as_dict(self) -> dict[str, int]:
        """Return the summary for JSON."""
        return asdict(self)


class CopyRecords(Protocol):
    """What sidecars know of the live copies of followed logs."""

    def recorded(self, root: Directory) -> set[str] | None:
        """Return the paths of the live copies that records name; None if the records cannot be read."""

    def is_watched(self, fd: int) -> bool:
        """Return whether a running sidecar sees or reads the log of a live copy."""


class Verification:
    """One comparison of rows and files. Sidecars may collect and prune meanwhile: a row that changes is read again.

    Args:
        catalog: the rows.
        files: the collected files.
        live_copies: what sidecars know of the logs that they follow.
        report: called for each finding.
        progress: called with the number of bytes of each step.
    """

    def __init__(
        self,
        catalog: Catalog,
        files: CollectedFiles,
        live_copies: CopyRecords,
        report: Callable[[Finding], None],
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._catalog, self._files, self._live_copies = catalog, files, live_copies
        self._report, self._progress = report, progress
        self.counts = Verified()

    def catalogued(self, filters: Filters) -> None:
        """Compare the files of the matching rows.

        Raises:
            CatalogError: the catalog cannot be read.
        """
        for row in self._catalog.rows(filters):
            self.counts.files += 1
            if row.sha256 is None:
                self.counts.without_digest += 1
            finding = self._compare(row)
            while finding is not None:
                now = self._catalog.get(row.path)
                if now == row:
                    self._found(finding)
                    break
                if now is None:
                    break  # its row was pruned or removed meanwhile
                row, finding = now, self._compare(now)  # another file was collected under that name

    def uncatalogued(self) -> None:
        """Find files without a row, and live copies without a record.

        Raises:
            CatalogError: the catalog cannot be read.
        """
        for group in grouped(self._files.walk(self._unreadable)):
            known = self._catalog.known([found.path for found in group])
            for found in group:
                if found.path not in known and not _under_way(found):
                    self._found(Finding(UNCATALOGUED, found.path, "it has no row: run `rebuild`"))

        self._abandoned()

    def _abandoned(self) -> None:
        # A live copy has a record from before it is made until after it is removed. So each is checked twice, before
        # and after the records are read.
        copies = [path for path in self._files.live if _LIVE_COPY.search(path)]
        before = [found for path in copies if (found := self._find(path)) is not None]
        recorded = self._live_copies.recorded(self._files.root) if before else None
        if recorded is None:
            return
        self.counts.unwatched = sum(found.path in recorded and not self._is_watched(found) for found in before)
        for found in before:
            now = self._find(found.path) if found.path not in recorded else None
            if now is not None and os.path.samestat(now.info, found.info):
                detail = "no sidecar will finish this copy of a log: compare it with the collected log, then remove it"
                self._found(Finding(ABANDONED, found.path, detail))

    def _is_watched(self, found: Found) -> bool:
        try:
            fd = open_file(found)
        except OSError:
            return True  # a sidecar finished it meanwhile
        try:
            return self._live_copies.is_watched(fd)
        finally:
            os.close(fd)

    def _find(self, path: str) -> Found | None:
        try:
            return self._files.find(path)
        except OSError:
            return None  # the walk has reported its directory

    def _compare(self, row: Row) -> Finding | None:
        if not is_plain(row.path):
            return Finding(UNREADABLE, row.path, "no file was ever collected to such a path; it was not read")
        try:
            found = self._files.find(row.path)
            if found is None:
                return Finding(MISSING, row.path, "the file does not exist; `rebuild` deletes its row")
            if not stat.S_ISREG(found.info.st_mode):
                return Finding(CHANGED, row.path, "it is not a regular file")
            if found.info.st_size != row.size:
                return Finding(CHANGED, row.path, f"it has {found.info.st_size} bytes and had {row.size}")
            if row.sha256 is None:
                self._progress(row.size)
                return None
            return self._compare_contents(row, found)
        except FileNotFoundError:
            return Finding(MISSING, row.path, "the file does not exist; `rebuild` deletes its row")
        except OSError as error:
            return Finding(UNREADABLE, row.path, describe(error))

    def _compare_contents(self, row: Row, found: Found) -> Finding | None:
        fd = open_file(found)
        try:
            now = digest(fd, self._count)
            same_time = clamped(os.fstat(fd).st_mtime_ns) == row.mtime_ns
        finally:
            os.close(fd)
        if now == row.sha256:
            return None
        hint = "its time is the same, so its disk may be failing" if same_time else "it was written to since"
        return Finding(CHANGED, row.path, f"its SHA-256 is {now} and was {row.sha256}; {hint}")

    def _count(self, count: int) -> None:
        self.counts.bytes += count
        self._progress(count)

    def _unreadable(self, path: str, error: OSError) -> None:
        self._found(Finding(UNREADABLE, path, describe(error)))

    def _found(self, finding: Finding) -> None:
        setattr(self.counts, finding.problem, getattr(self.counts, finding.problem) + 1)
        self._report(finding)


def _under_way(found: Found) -> bool:
    """Return whether a sidecar is about to add the row. Until then its claim or copy is another link to the file."""
    try:
        info = os.stat(found.name, dir_fd=found.directory.fd, follow_symlinks=False)
    except OSError:
        return True  # it was removed meanwhile
    # The status is from before the catalog was read, and the other link is removed after the row was added.
    return found.info.st_nlink > 1 and abs(time.time_ns() - info.st_ctime_ns) < _UNDER_WAY_NS


def grouped(files: Iterator[Found]) -> Iterator[list[Found]]:
    """Yield files in groups whose rows are read together."""
    group: list[Found] = []
    for found in files:
        group.append(found)
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group
