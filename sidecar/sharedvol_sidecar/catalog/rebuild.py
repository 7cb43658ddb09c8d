"""Make the catalog true again by the files.

First every file gets its row, then rows without a file go. Each change holds only if the row is still the one
that was looked at, so a sidecar that collects meanwhile always wins: its row is of the file that is there, and
it knows the original path. A name that is taken back after its file was seen here leaves a row for the second
step to find.
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
    """Counts of one rebuilding.

    Attributes:
        files: that were read.
        bytes: that were read.
        kept: rows that were right.
        added: rows for files that had none.
        replaced: rows of other contents than the file has.
        completed: rows that lacked the digest, or had another time than the file.
        dropped: rows without a file.
        unreadable: files and directories that could not be read; their rows stay.
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
        """The summary's JSON."""
        return asdict(self)


class Rebuild:
    """One rebuilding.

    Args:
        catalog: the rows.
        tree: the files.
        inverse: tells kind and container of a file by its path.
        tell: told of each change and of what cannot be read.
        progress: told of bytes as they are read.
    """

    def __init__(
        self,
        catalog: Catalog,
        tree: CollectedFiles,
        inverse: TemplateInverse,
        tell: Callable[[Finding], None],
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._catalog, self._tree, self._inverse = catalog, tree, inverse
        self._tell, self._progress = tell, progress
        self.counts = Rebuilt()

    def run(self) -> Rebuilt:
        """Both steps, in the one order that is safe.

        Raises:
            CatalogError: the catalog cannot be read or written. Run it again: what was done stays done.
        """
        self.add_rows()
        self.drop_rows()
        return self.counts

    def add_rows(self) -> None:
        """Give every file the row that is true of it."""
        for group in grouped(self._tree.walk(self._unreadable)):
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
        """Forget the rows whose files are gone."""
        gone: list[Row] = []
        for row in self._catalog.rows():
            if self._is_gone(row):
                gone.append(row)
            if len(gone) == _BATCH:
                self._drop(gone)
                gone = []
        self._drop(gone)

    def _drop(self, gone: list[Row]) -> None:
        self._catalog.forget(gone)
        self.counts.dropped += len(gone)
        for row in gone:
            self._tell(Finding(DROPPED, row.path, "the file is gone"))

    def _is_gone(self, row: Row) -> bool:
        if not is_plain(row.path):
            return True  # no file of ours can be there
        try:
            return self._tree.find(row.path) is None
        except OSError as error:
            self._unreadable(row.path, error)
            return False

    def _row(self, found: Found, before: Row | None) -> Row | None:
        """What is true of a file; None where it is gone or cannot be read."""
        try:
            fd = open_file(found)
            try:
                # As when it was collected: a digest would cost the length that the file claims.
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
        # It got its name when its status changed last, unless it was restored: then its age begins anew.
        when = min(info.st_ctime_ns, time.time_ns())
        return Row(found.path, kind, container, "", info.st_size, hashed, info.st_mtime_ns, when)

    def _changed(self, before: Row | None, after: Row) -> None:
        if before is None:
            self.counts.added += 1
            self._tell(Finding(ADDED, after.path, "it had no row"))
        elif before.collected_at == after.collected_at:
            self.counts.completed += 1
            self._tell(Finding(COMPLETED, after.path, "its row lacked the digest or had another time"))
        else:
            self.counts.replaced += 1
            self._tell(Finding(REPLACED, after.path, "its row was of other contents"))

    def _count(self, count: int) -> None:
        self.counts.bytes += count
        self._progress(count)

    def _unreadable(self, path: str, error: OSError) -> None:
        self.counts.unreadable += 1
        self._tell(Finding(UNREADABLE, path, describe(error)))
