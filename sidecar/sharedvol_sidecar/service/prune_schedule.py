"""Retention in a running service: once an hour and when the destination is full; by default it only reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.errors import forget_frames
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.humanize import size
from sharedvol_sidecar.retention.pruner import Pruned, apply_in_steps, plan_in_steps
from sharedvol_sidecar.retention.relief import make_room, readable
from sharedvol_sidecar.retention.rules import parse_rules

EVERY = 3600.0

PORTION = 1.0
"""Seconds of work between two passes: files that come meanwhile wait no longer."""


RELIEF_EVERY = 60.0
"""Seconds until a full destination is searched again for files to delete, if the last time nothing was found."""

RELIEF = 5.0
"""Seconds that the deletion may take before new files are collected; the rest is deleted between passes."""


_REMEMBERED = 10_000


class PruneSchedule:
    """Looks once an hour for what is beyond the rules, a portion at a time.

    Args:
        rules: as people write them; none for none.
        mode: ``apply`` deletes; ``dry-run`` reports what would be deleted.
        events: receives what was deleted, or would be.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        rules: tuple[str, ...],
        mode: Literal["off", "dry-run", "apply"],
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = parse_rules(rules) if mode != "off" else ()
        self._apply, self._events, self._clock = mode == "apply", events, clock
        self._next = clock()
        self._next_relief = float("-inf")
        self._left: set[str] = set()  # the paths of files that could not be deleted: each is reported once
        self._catalog: Catalog | None = None
        self._steps: Iterator[object] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the next call of `advance` continues at once."""
        return self._steps is not None

    def advance(self, collector: Collector, stop: Callable[[], bool] = lambda: False) -> None:
        """Do a portion of it if it is time.

        Args:
            collector: whose catalog and destination these are. A new one begins again.
            stop: queried after each short step whether to leave the rest for another call.
        """
        if not self._rules or (self._steps is None and self._clock() < self._next):
            return
        try:
            self._continue(collector, stop)
        except CatalogError as error:
            self._steps = None
            self._events.catalog_failed(f"{error}; nothing is pruned until it can be read")

    def relieve(self, job: CollectorConfig, stop: Callable[[], bool] = lambda: False) -> bool:
        """Make room in a full destination now, by what the rules do not keep. Return whether a file was deleted.

        It needs no collector, which a full disk may not allow, and no room: see `retention_relief`. In a dry run it
        only reports what would be deleted.

        Args:
            job: names the destination and the catalog.
            stop: queried after each short step whether to end.
        """
        if not self._rules or job.catalog is None or self._clock() < self._next_relief:
            return False
        self._next_relief = self._clock() + RELIEF_EVERY
        deleted = False
        try:
            with open_root(Path(job.collected)) as root:
                if not self._apply:
                    with readable(job.catalog, root) as catalog:
                        for _ in self._begin(catalog, root):
                            if stop():
                                break
                    return False
                for outcomes in self._making_room(job.catalog, root):
                    for pruned in outcomes:
                        deleted = deleted or pruned.outcome == "deleted"
                        self._report(pruned)
                    if deleted:
                        self._next_relief = float("-inf")
                        self._next = self._clock()
                    if stop():
                        break
        except (CatalogError, OSError) as error:
            self._events.catalog_failed(f"{error}; nothing more is pruned until it can be read")
            forget_frames(error)
        return deleted

    def _making_room(self, url: str | None, root: Directory) -> Iterator[list[Pruned]]:
        end = self._clock() + RELIEF
        now = time.time_ns()
        yield from make_room(url, root, self._rules, now)
        with contextlib.closing(Catalog.open(url, root, create=False)) as catalog:
            for outcomes in apply_in_steps(catalog, root, plan_in_steps(catalog, self._rules, now)):
                yield outcomes
                if self._clock() >= end:
                    return

    def _continue(self, collector: Collector, stop: Callable[[], bool]) -> None:
        end = self._clock() + PORTION
        if self._steps is None:
            self._next = self._clock() + EVERY
        catalog = collector.parts.catalog.catalog
        if self._steps is None or catalog is not self._catalog:
            self._catalog = catalog
            self._steps = self._begin(catalog, collector.root) if catalog is not None else iter(())
        for _ in self._steps:
            if stop() or self._clock() >= end:
                return
        self._steps = self._catalog = None

    def _begin(self, catalog: Catalog, root: Directory) -> Iterator[object]:
        plan = plan_in_steps(catalog, self._rules, time.time_ns())
        if self._apply:
            for outcomes in apply_in_steps(catalog, root, plan):
                for pruned in outcomes:
                    self._report(pruned)
                yield None
            return
        files = total = 0
        for doomed in plan:
            files += len(doomed)
            total += sum(one.row.size for one in doomed)
            yield None
        if files:
            self._events.would_prune(f"{files} files, {size(total)}, would be deleted: set prune to apply")

    def _report(self, pruned: Pruned) -> None:
        path = pruned.expired.row.path
        if pruned.outcome in ("deleted", "gone"):
            self._left.discard(path)
        if pruned.outcome == "deleted":
            self._events.pruned(path, pruned.expired.why)
        elif pruned.outcome != "gone" and path not in self._left and len(self._left) < _REMEMBERED:
            self._left.add(path)
            self._events.not_pruned(path, f"not pruned: {pruned.detail}")
