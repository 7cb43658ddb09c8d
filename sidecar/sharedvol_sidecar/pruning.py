"""Retention in a running service: once an hour, and by default only said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from sharedvol_sidecar.catalog import CatalogError
from sharedvol_sidecar.collector import Collector
from sharedvol_sidecar.console import size_words
from sharedvol_sidecar.report import Event, Listener
from sharedvol_sidecar.retention import Pruned, parse_rules, plan, prune

EVERY = 3600.0


class Pruning:
    """Looks once an hour for what is beyond the rules.

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

    def look(self, collector: Collector) -> None:
        """Do it if it is time."""
        if not self._rules or self._clock() < self._next:
            return
        self._next = self._clock() + EVERY
        try:
            self._look(collector)
        except CatalogError as error:
            self._tell(Event("catalog", "", f"{error}; nothing is pruned until it can be read"))

    def _look(self, collector: Collector) -> None:
        catalog = collector.register.catalog
        if catalog is None:
            return
        now = time.time_ns()
        if not self._apply:
            files = size = 0
            for doomed in plan(catalog, self._rules, now):
                files += 1
                size += doomed.row.size
            if files:
                detail = f"{files} files, {size_words(size)}, would be deleted: set prune to apply"
                self._tell(Event("pruned", "", detail))
            return

        def told(pruned: Pruned) -> None:
            if pruned.outcome == "deleted":
                self._tell(Event("pruned", pruned.doomed.row.path, pruned.doomed.why))
            elif pruned.outcome != "gone":
                self._tell(Event("failed", pruned.doomed.row.path, f"not pruned: {pruned.detail}"))

        prune(catalog, collector.root, self._rules, now, told)
