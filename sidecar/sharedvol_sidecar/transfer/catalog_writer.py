"""What the mover tells the catalog: rows, before their claims go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Row
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.transfer.item import Item

_AGAIN = 5.0


class CatalogWriter:
    """Adds rows where there is a catalog, and goes on without it while it fails.

    Args:
        open_catalog: opens the catalog, or None where there is to be none.
        events: receives when it fails, and when it is back.
    """

    def __init__(self, open_catalog: Callable[[], Catalog] | None, events: Events) -> None:
        self._open, self._events = open_catalog, events
        self._catalog: Catalog | None = None
        self._until = 0.0
        self.problem = ""
        """Why it cannot be written now; empty while it can."""
        self.full = False
        """Whether that is because its disk has no room."""

    @property
    def resting(self) -> bool:
        """Whether it failed a moment ago, and is not asked again yet: claims that wait for it need no look."""
        return self.rest > 0

    @property
    def rest(self) -> float:
        """Seconds until it is asked again; 0 if it may be asked now."""
        return max(0.0, self._until - time.monotonic()) if self.problem else 0.0

    def add(self, items: Sequence[Item]) -> bool:
        """Commit the rows of files that have their final names. False where their claims are to stay."""
        if self._open is None or not items:
            return True
        if self.resting:
            return False
        try:
            self._connected().add([_row(item) for item in items])
        except CatalogError as error:
            self._failed(error)
            return False
        self._recovered()
        return True

    def remove(self, target: str) -> None:
        """Take back the row of a file that is withdrawn. Where that fails the row names what is not there.

        `rebuild` mends it, and so does the file when it comes again under that name.
        """
        if self._open is None or not target:
            return
        try:
            self._connected().remove([target])
        except CatalogError as error:
            self._failed(error)

    def prepare(self, progress: Callable[[], object] = lambda: None) -> None:
        """Connect, and make the catalog where it is missing; of one that failed, ask whether it is back.

        Args:
            progress: called about once a second while this takes time; a true value ends the wait.
        """
        if self._open is None or self.resting or (self._catalog is not None and not self.problem):
            return
        try:
            catalog = self._connected()
            if self.problem:
                catalog.remove([""])  # no row's path; but it has to write: what cannot be written may be readable
        except CatalogError as error:
            self._failed(error)
        else:
            self._recovered()
            self._improve(catalog, progress)

    def _improve(self, catalog: Catalog, progress: Callable[[], object]) -> None:
        try:
            catalog.add_indexes(progress)
        except CatalogError as error:
            self._events.catalog_index(f"{error}; until then `ls` and `prune` by kind take longer")

    @property
    def catalog(self) -> Catalog | None:
        """The catalog itself, None where there is none.

        Raises:
            CatalogError: it cannot be opened.
        """
        return self._connected() if self._open is not None else None

    def try_again(self) -> None:
        """Do not rest any longer: what kept the catalog from being written may be over."""
        self._until = 0.0

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None

    def _connected(self) -> Catalog:
        if self._catalog is None:
            assert self._open is not None
            self._catalog = self._open()
        return self._catalog

    def _failed(self, error: CatalogError) -> None:
        self._until = time.monotonic() + _AGAIN
        before, self.problem, self.full = self.problem, str(error), error.full
        if self.problem != before:
            self._events.catalog_failed(f"{error}; files are moved all the same, and their rows follow")

    def _recovered(self) -> None:
        if self.problem:
            self.problem, self.full = "", False
            self._events.catalog_recovered()


def _row(item: Item) -> Row:
    origin, info = item.candidate.origin, item.info
    if item.encoding:
        place, name = item.source
        size = os.stat(name, dir_fd=place.fd, follow_symlinks=False).st_size
    else:
        size = info.st_size
    return Row(
        path=item.target,
        kind=origin.kind,
        container=origin.container,
        original=item.candidate.path,
        size=size,
        sha256=item.sha256,
        mtime_ns=info.st_mtime_ns,
        collected_at=time.time_ns(),
        encoding=item.encoding or None,
        original_size=info.st_size if item.encoding else None,
    )
