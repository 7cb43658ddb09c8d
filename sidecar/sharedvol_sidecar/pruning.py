"""Retention in a running service: once an hour, and by default only said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

from sharedvol_sidecar.catalog import Catalog, CatalogError
from sharedvol_sidecar.collector import Collector
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.report import Event, Listener
from sharedvol_sidecar.retention import Pruned, apply_in_steps, parse_rules, plan_in_steps
from sharedvol_sidecar.text import size

EVERY = 3600.0

PORTION = 1.0
"""Seconds of work between two passes: files that come meanwhile wait no longer."""


class Pruning:
    """Looks once an hour for what is beyond the rules, a portion at a time.

    Args:
        rules: as people write them; none for none.
        mode: ``apply`` deletes; ``dry-run`` tells what would be deleted.
        tell: told.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        rules: tuple[str, ...],
        mode: Literal["off", "dry-run", "apply"],
        tell: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = parse_rules(rules) if mode != "off" else ()
        self._apply, self._tell, self._clock = mode == "apply", tell, clock
        self._next = clock()
        self._catalog: Catalog | None = None
        self._steps: Iterator[object] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the next call of `look` continues at once."""
        return self._steps is not None

    def look(self, collector: Collector, stop: Callable[[], bool] = lambda: False) -> None:
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
            self._tell(Event("catalog", "", f"{error}; nothing is pruned until it can be read"))

    def _continue(self, collector: Collector, stop: Callable[[], bool]) -> None:
        end = self._clock() + PORTION
        if self._steps is None:
            self._next = self._clock() + EVERY
        catalog = collector.register.catalog
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
                    self._told(pruned)
                yield None
            return
        files = total = 0
        for doomed in plan:
            files += len(doomed)
            total += sum(one.row.size for one in doomed)
            yield None
        if files:
            detail = f"{files} files, {size(total)}, would be deleted: set prune to apply"
            self._tell(Event("would_prune", "", detail))  # not "pruned", by which what is deleted is counted

    def _told(self, pruned: Pruned) -> None:
        if pruned.outcome == "deleted":
            self._tell(Event("pruned", pruned.doomed.row.path, pruned.doomed.why))
        elif pruned.outcome != "gone":
            self._tell(Event("failed", pruned.doomed.row.path, f"not pruned: {pruned.detail}"))
