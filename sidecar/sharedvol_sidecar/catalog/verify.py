"""Compare the catalog with the files: what was changed or is missing, what no catalog and no record knows."""

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
"""What the names of live copies end with. Another file whose name ends in ``.live`` is not a sidecar's."""

_GROUP = 500
_UNDER_WAY_NS = 60 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be; ``problem`` is one of `PROBLEMS`."""

    problem: str
    path: str
    detail: str


@dataclass(slots=True)
class Verified:
    """Counts of one verification.

    Attributes:
        files: catalogued files that were compared.
        bytes: read.
        without_digest: of those files, the ones whose row has no digest: only their size was compared.
        changed: those that differ.
        missing: rows without a file.
        uncatalogued: files without a row.
        abandoned: live copies that no record names, so that no sidecar will finish them.
        unreadable: files and directories that could not be read.
        unwatched: live copies whose logs no running sidecar sees or reads. They are finished by the next one whose
            settings show the logs, so they are not a problem as such.
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
        """Whether all is as it should be."""
        return not any(getattr(self, problem) for problem in PROBLEMS)

    def as_dict(self) -> dict[str, int]:
        """The summary's JSON."""
        return asdict(self)


class CopyRecords(Protocol):
    """What sidecars know of the live copies of followed logs."""

    def recorded(self, root: Directory) -> set[str] | None:
        """Return the paths of the live copies that records name; None if the records cannot be read."""

    def is_watched(self, fd: int) -> bool:
        """Return whether a running sidecar sees or reads the log of a live copy."""


class Verification:
    """One look at everything. Safe while sidecars collect and prune: what changes meanwhile is asked again.

    Args:
        catalog: the rows.
        tree: the files.
        live_copies: what sidecars know of the logs that they follow.
        tell: told of each finding.
        progress: told of bytes as they are done.
    """

    def __init__(
        self,
        catalog: Catalog,
        tree: CollectedFiles,
        live_copies: CopyRecords,
        tell: Callable[[Finding], None],
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._catalog, self._tree, self._live_copies = catalog, tree, live_copies
        self._tell, self._progress = tell, progress
        self.counts = Verified()

    def catalogued(self, filters: Filters) -> None:
        """Compare the files that have a row which passes.

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
                    break  # pruned, or taken back
                row, finding = now, self._compare(now)  # collected again under that name

    def uncatalogued(self) -> None:
        """Look for files without a row, and for live copies without a record.

        Raises:
            CatalogError: the catalog cannot be read.
        """
        for group in grouped(self._tree.walk(self._unreadable)):
            known = self._catalog.known([found.path for found in group])
            for found in group:
                if found.path not in known and not _under_way(found):
                    self._found(Finding(UNCATALOGUED, found.path, "there is no row for it: run `rebuild`"))

        self._abandoned()

    def _abandoned(self) -> None:
        # A live copy has a record from before it is made until after it is removed: so each is looked at twice, before
        # and after the records are read.
        copies = [path for path in self._tree.live if _LIVE_COPY.search(path)]
        before = [found for path in copies if (found := self._look(path)) is not None]
        recorded = self._live_copies.recorded(self._tree.root) if before else None
        if recorded is None:
            return
        self.counts.unwatched = sum(found.path in recorded and not self._is_watched(found) for found in before)
        for found in before:
            now = self._look(found.path) if found.path not in recorded else None
            if now is not None and os.path.samestat(now.info, found.info):
                detail = "no sidecar will finish this copy of a log: compare it with the collected log, then remove it"
                self._found(Finding(ABANDONED, found.path, detail))

    def _is_watched(self, found: Found) -> bool:
        try:
            fd = open_file(found)
        except OSError:
            return True  # it was finished meanwhile
        try:
            return self._live_copies.is_watched(fd)
        finally:
            os.close(fd)

    def _look(self, path: str) -> Found | None:
        try:
            return self._tree.find(path)
        except OSError:
            return None  # the walk has reported its directory

    def _compare(self, row: Row) -> Finding | None:
        if not is_plain(row.path):
            return Finding(UNREADABLE, row.path, "no file was ever collected to such a path; it was not looked at")
        try:
            found = self._tree.find(row.path)
            if found is None:
                return Finding(MISSING, row.path, "the file is gone; `rebuild` drops the row")
            if not stat.S_ISREG(found.info.st_mode):
                return Finding(CHANGED, row.path, "it is no regular file")
            if found.info.st_size != row.size:
                return Finding(CHANGED, row.path, f"it has {found.info.st_size} bytes, and had {row.size}")
            if row.sha256 is None:
                self._progress(row.size)
                return None
            return self._compare_contents(row, found)
        except FileNotFoundError:
            return Finding(MISSING, row.path, "the file is gone; `rebuild` drops the row")
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
        hint = "though its time is the same: its disk may be failing" if same_time else "it was written since"
        return Finding(CHANGED, row.path, f"its SHA-256 is {now}, and was {row.sha256}; {hint}")

    def _count(self, count: int) -> None:
        self.counts.bytes += count
        self._progress(count)

    def _unreadable(self, path: str, error: OSError) -> None:
        self._found(Finding(UNREADABLE, path, describe(error)))

    def _found(self, finding: Finding) -> None:
        setattr(self.counts, finding.problem, getattr(self.counts, finding.problem) + 1)
        self._tell(finding)


def _under_way(found: Found) -> bool:
    """Whether a sidecar is about to add the row: its claim, or copy, is another link to the file until it has."""
    try:
        info = os.stat(found.name, dir_fd=found.directory.fd, follow_symlinks=False)
    except OSError:
        return True  # gone meanwhile
    # As it was before the catalog was asked: the last link goes after the row came.
    return found.info.st_nlink > 1 and abs(time.time_ns() - info.st_ctime_ns) < _UNDER_WAY_NS


def grouped(files: Iterator[Found]) -> Iterator[list[Found]]:
    """Files in groups that the catalog is asked about at once."""
    group: list[Found] = []
    for found in files:
        group.append(found)
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group
