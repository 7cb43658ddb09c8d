"""What happens, as one method for each event: it counts the event and reports it to a listener.

How an event appears (its name in the log, its level, the list of the status page, whether it repeats) is declared next
to its method. A new event is a new declaration and a new method; every output is made from these.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, Protocol

from sharedvol_sidecar.counters import Counter, PassCounts, Reason
from sharedvol_sidecar.event import Event, EventKind, Listener


class CollectedFile(Protocol):
    """What `Events.collected` reads of a file."""

    info: os.stat_result
    target: str
    leased: bool
    kept_both: bool
    in_destination: bool
    followed: str

    @property
    def staged(self) -> object | None:
        """Where its copy is, if it was copied."""


class Events:
    """Counts and reports what happens.

    Methods without a declaration above them count only.

    Args:
        listener: receives the events; None counts without reporting.
        each_file: whether to report every collected file.
    """

    def __init__(self, listener: Listener | None = None, *, each_file: bool = False) -> None:
        self._listener, self._each_file = listener, each_file and listener is not None
        self.counts = PassCounts()
        """The counts of the pass under way. `new_pass` replaces the object."""

    def new_pass(self) -> PassCounts:
        """Begin to count a pass, or a step between two passes, and return its counts."""
        self.counts = PassCounts()
        return self.counts

    @contextlib.contextmanager
    def moved_only(self) -> Iterator[None]:
        """Count what is done inside of the block, and ignore what is left there."""
        counts, self.counts = self.counts, PassCounts()
        try:
            yield
        finally:
            counts.add_moved(self.counts)
            self.counts = counts

    # What is collected.

    COLLECTED: Final = EventKind("collected", "recent", logging.DEBUG, repeats=True, log_name="file")

    def collected(self, file: CollectedFile, path: str, container: str, root: str, *, recovered: bool) -> None:
        """Report a file that was collected.

        Args:
            file: what was moved.
            path: where it was in the spool.
            container: whose file it is.
            root: the destination's name.
            recovered: whether a mover that died had claimed it.
        """
        counts, info, in_destination = self.counts, file.info, file.in_destination
        counts.collected += 1
        counts.bytes += info.st_size
        if file.kept_both:
            counts.kept_both += 1
        if file.staged is not None and not in_destination:
            counts.copied += 1
        if in_destination or file.followed:
            counts.sealed += 1
        if recovered:
            counts.recovered += 1
        if not file.leased and not in_destination:
            counts.unleased += 1
        if self._each_file:
            age = max(0.0, time.time() - info.st_ctime_ns / 1e9)  # no program can set that time
            self._report(self.COLLECTED, path, f"{root}/{file.target}", container, info.st_size, age)

    UNLEASED: Final = EventKind("unleased")

    def unleased(self, detail: str) -> None:
        """Report that no lease is available. `collected` counts the files."""
        self._report(self.UNLEASED, "", detail)

    PUT_BACK: Final = EventKind("put_back", level=logging.DEBUG, repeats=True)

    def put_back(self, path: str, why: str) -> None:
        """Report a file that was put back into the spool."""
        self.counts.put_back += 1
        self._report(self.PUT_BACK, path, why)

    def helped(self, counts: PassCounts) -> None:
        """Add what a helper process moved during this pass."""
        self.counts.add_moved(counts)
        self.counts.uncatalogued += counts.uncatalogued

    # What is left.

    REFUSED: Final = EventKind("refused", "dropped")

    def refused(self, path: str, why: str) -> None:
        """Report something that is never collected as it is."""
        self.counts.refused += 1
        self._report(self.REFUSED, path, why)

    UNMATCHED: Final = EventKind("unmatched", "dropped")

    def unmatched(self, path: str, why: str) -> None:
        """Report a file that is in no source."""
        self.counts.unmatched += 1
        self._report(self.UNMATCHED, path, why)

    UNFINISHED: Final = EventKind("unfinished", "dropped")

    def unfinished(self, path: str, why: str) -> None:
        """Report the temporary of a writer that died."""
        self.counts.unfinished += 1
        self._report(self.UNFINISHED, path, why)

    FAILED: Final = EventKind("failed", "errors", linger=120.0)  # a file that failed is not tried in every pass

    def failed(self, path: str, why: str) -> None:
        """Report a file that could not be moved, or a directory that could not be read."""
        self.counts.failed += 1
        self._report(self.FAILED, path, why)

    def still_failed(self, files: int = 1) -> None:
        """Count files that failed and were reported earlier, and are not tried now."""
        self.counts.failed += files

    def no_room(self, files: int = 1) -> None:
        """Count files or followed logs for which the destination has too little space."""
        self.counts.no_room += files

    def denied(self) -> None:
        """Count a directory of the destination that may not be written."""
        self.counts.denied += 1

    def settling(self) -> None:
        """Count a file that was changed less than the quiet time ago."""
        self.counts.settling += 1

    def writing(self) -> None:
        """Count a file that a process has open for writing."""
        self.counts.writing += 1

    def elsewhere(self) -> None:
        """Count a container that another sidecar is working on."""
        self.counts.elsewhere += 1

    def uncatalogued(self) -> None:
        """Count a file whose row could not be written."""
        self.counts.uncatalogued += 1

    def still_uncatalogued(self, files: int) -> None:
        """Count files that wait for their rows, at least as many as are known."""
        self.counts.uncatalogued = max(self.counts.uncatalogued, files)

    # Logs that are followed.

    FOLLOWED: Final = EventKind("followed", level=logging.DEBUG, repeats=True)

    def followed(self, path: str, live: str) -> None:
        """Report a log that is followed from now on, and its live copy."""
        self._report(self.FOLLOWED, path, live)

    def followed_bytes(self, count: int) -> None:
        """Count what was copied of a followed log."""
        self.counts.followed += count

    TRUNCATED: Final = EventKind("truncated", "dropped", logging.INFO, repeats=True)

    def truncated(self, path: str, detail: str) -> None:
        """Report a followed log that was cut or changed."""
        self.counts.truncated += 1
        self._report(self.TRUNCATED, path, detail)

    UNFOLLOWED: Final = EventKind("unfollowed")

    def unfollowed(self, path: str, why: str) -> None:
        """Report a log that is not followed."""
        self._report(self.UNFOLLOWED, path, why)

    def damaged_record(self, path: str, why: str) -> None:
        """Report a followed log's record that cannot be read. The pass counts it with `still_failed`."""
        self._report(self.FAILED, path, why)

    RETURNED: Final = EventKind("returned", level=logging.DEBUG, repeats=True)

    def returned(self, path: str, detail: str) -> None:
        """Report a collected log that came back and was removed."""
        self._report(self.RETURNED, path, detail)

    COMPRESSED_COPY: Final = EventKind("compressed_copy")

    def compressed_copy(self, path: str, detail: str) -> None:
        """Report a followed log that a rotation compressed."""
        self._report(self.COMPRESSED_COPY, path, detail)

    # The spool, the catalog and retention.

    ORPHAN_REMOVED: Final = EventKind("orphan_removed", level=logging.INFO, repeats=True)

    def orphan_removed(self, container: str, detail: str) -> None:
        """Report the directory of a dead container that was removed."""
        self.counts.orphans_removed += 1
        self._report(self.ORPHAN_REMOVED, container, detail)

    ORPHAN_KEPT: Final = EventKind("orphan_kept", is_container=True)

    def orphan_kept(self, container: str, why: str) -> None:
        """Report the directory of a dead container that cannot be removed."""
        self._report(self.ORPHAN_KEPT, container, why)

    NETWORK_FILE_SYSTEM: Final = EventKind("network_file_system")

    def network_file_system(self, path: str, detail: str) -> None:
        """Report a directory on a network file system."""
        self._report(self.NETWORK_FILE_SYSTEM, path, detail)

    PRUNED: Final = EventKind(
        "pruned",
        level=logging.INFO,
        repeats=True,
        counts=Counter(
            "pruned",
            "done",
            "files",
            "Collected files that were deleted as too old or for space.",
            "pruned_files",
            section="removed",
        ),
    )

    def pruned(self, path: str, why: str) -> None:
        """Report a collected file that was deleted."""
        self._report(self.PRUNED, path, why)

    NOT_PRUNED: Final = EventKind(
        "failed",
        "errors",
        repeats=True,
        counts=Counter(
            "not_pruned",
            "done",
            "files",
            "Collected files that could not be deleted.",
            Reason("errors", "file"),
            section="removed",
        ),
    )

    def not_pruned(self, path: str, why: str) -> None:
        """Report a collected file that could not be deleted."""
        self._report(self.NOT_PRUNED, path, why)

    WOULD_PRUNE: Final = EventKind("would_prune", level=logging.INFO)

    def would_prune(self, detail: str) -> None:
        """Report what a dry run would delete."""
        self._report(self.WOULD_PRUNE, "", detail)

    CATALOG_FAILED: Final = EventKind(
        "catalog",
        "errors",
        repeats=True,
        counts=Counter(
            "catalog",
            "done",
            "problems",
            "Problems with the catalog, each counted when it begins.",
            Reason("errors", "catalog"),
        ),
    )

    def catalog_failed(self, why: str) -> None:
        """Report that the catalog cannot be read or written."""
        self._report(self.CATALOG_FAILED, "", why)

    CATALOG_RECOVERED: Final = EventKind("catalog", "errors", repeats=True)

    def catalog_recovered(self) -> None:
        """Report that the catalog can be written again."""
        self._report(self.CATALOG_RECOVERED, "", "it can be written again")

    CATALOG_INDEX: Final = EventKind("catalog_index")

    def catalog_index(self, why: str) -> None:
        """Report that the catalog lacks an index."""
        self._report(self.CATALOG_INDEX, "", why)

    def _report(
        self,
        kind: EventKind,
        path: str,
        detail: str,
        container: str = "",
        size: int | None = None,
        age: float | None = None,
    ) -> None:
        if self._listener is not None:
            self._listener(Event(kind, path, detail, container, size, age))


KINDS: Final = tuple(one for one in vars(Events).values() if isinstance(one, EventKind))
"""Every kind of event."""

BY_EVENT: Final = MappingProxyType({kind.counts.name: kind.counts for kind in KINDS if kind.counts is not None})
"""The counters of what happens outside of passes."""
