"""Make the rows of the catalog agree with the files.

First every file gets its row, then rows without a file are deleted. Each change is made only if the row is still the
one that was read. So a sidecar that collects meanwhile always wins, because its row is of the existing file and has the
original path. If a name is removed after its file was read here, the second step finds its row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog, Row, clamped
from sharedvol_sidecar.catalog.files import CollectedFiles, Found, digest, is_plain, open_file
from sharedvol_sidecar.catalog.verify import UNREADABLE, Finding, grouped
from sharedvol_sidecar.destination.template_inverse import TemplateInverse
from sharedvol_sidecar.fs.holes import is_hollow

ADDED, REPLACED, COMPLETED, DROPPED = "added", "replaced", "completed", "dropped"

_BATCH = 500


@dataclass(slots=True)
class Rebuilt:
    """Counts of one rebuild.

    Attributes:
        files: files that were read.
        bytes: bytes that were read.
        kept: rows that were right.
        added: rows for files that had none.
        replaced: rows whose file has other content.
        completed: rows that lacked the digest, or had another time than the file.
        dropped: rows without a file.
        unreadable: files and directories that could not be read. Their rows stay.
    """

    files: int = 0
    bytes: int = 0
    kept: int = 0
    added: int = 0
    replaced: int = 0
    completed: int = 0
    dropped: int = 0
    unreadable: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the summary for JSON."""
        return asdict(self)


class Rebuild:
    """One rebuild of a catalog.

    Args:
        catalog: the rows.
        files: the collected files.
        inverse: reads kind and container from a path.
        report: called for each change and for each file that cannot be read.
        progress: called with the number of bytes of each read.
    """

    def __init__(
        self,
        catalog: Catalog,
        files: CollectedFiles,
        inverse: TemplateInverse,
        report: Callable[[Finding], None],
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._catalog, self._files, self._inverse = catalog, files, inverse
        self._report, self._progress = report, progress
        self.counts = Rebuilt()

    def run(self) -> Rebuilt:
        """Run both steps in the only order that is safe.

        Raises:
            CatalogError: the catalog cannot be read or written. What was done stays. Run it again.
        """
        self.add_rows()
        self.drop_rows()
        return self.counts

    def add_rows(self) -> None:
        """Give every file a row that is right."""
        for group in grouped(self._files.walk(self._unreadable)):
            known = self._catalog.known([found.path for found in group])
            changes: list[tuple[Row | None, Row]] = []
            for found in group:
                before = known.get(found.path)
                after = self._row(found, before)
                if after is None:
                    continue
                if after == before:
                    self.counts.kept += 1
                else:
                    changes.append((before, after))
            self._catalog.amend(changes)
            for before, after in changes:
                self._changed(before, after)

    def drop_rows(self) -> None:
        """Delete the rows whose files do not exist."""
        missing: list[Row] = []
        for row in self._catalog.rows():
            if self._is_missing(row):
                missing.append(row)
            if len(missing) == _BATCH:
                self._drop(missing)
                missing = []
        self._drop(missing)

    def _drop(self, missing: list[Row]) -> None:
        self._catalog.forget(missing)
        self.counts.dropped += len(missing)
        for row in missing:
            self._report(Finding(DROPPED, row.path, "the file does not exist"))

    def _is_missing(self, row: Row) -> bool:
        if not is_plain(row.path):
            return True  # no file is ever collected to such a path
        try:
            return self._files.find(row.path) is None
        except OSError as error:
            self._unreadable(row.path, error)
            return False

    def _row(self, found: Found, before: Row | None) -> Row | None:
        """Return the right row of a file; None if it was removed or cannot be read."""
        try:
            fd = open_file(found)
            try:
                # As when it was collected: for a hollow file, a digest would take as long as for its full length.
                hashed = None if is_hollow(fd, os.fstat(fd)) else digest(fd, self._count)
                info = os.fstat(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unreadable(found.path, error)
            return None
        self.counts.files += 1
        if before is not None and before.size == info.st_size and before.sha256 in (None, hashed):
            return replace(before, sha256=hashed, mtime_ns=clamped(info.st_mtime_ns))
        kind, container = self._inverse.read(found.path)
        # It got its name when its status changed last. The age of a restored file begins at the restore.
        when = min(info.st_ctime_ns, time.time_ns())
        return Row(found.path, kind, container, "", info.st_size, hashed, info.st_mtime_ns, when)

    def _changed(self, before: Row | None, after: Row) -> None:
        if before is None:
            self.counts.added += 1
            self._report(Finding(ADDED, after.path, "it had no row"))
        elif before.collected_at == after.collected_at:
            self.counts.completed += 1
            self._report(Finding(COMPLETED, after.path, "its row lacked the digest or had another time"))
        else:
            self.counts.replaced += 1
            self._report(Finding(REPLACED, after.path, "its row was of other contents"))

    def _count(self, count: int) -> None:
        self.counts.bytes += count
        self._progress(count)

    def _unreadable(self, path: str, error: OSError) -> None:
        self.counts.unreadable += 1
        self._report(Finding(UNREADABLE, path, describe(error)))
