"""A limit for lines of the log that repeat: whoever writes the spool decides how often something happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import structlog

LINES: Final = 120
"""Lines of one event that are written in a minute. Lines for `--verbose` are not limited."""

_MINUTE: Final = 60.0
_SUMMARIES: Final = frozenset({"summary", "stopped"})


class LineLimit:
    """A processor of structlog that drops lines of an event beyond `LINES` a minute.

    The next line of that event says in ``suppressed`` how many were dropped, and so does the next summary.

    Args:
        lines: how many lines of an event are written in a minute.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, lines: int = LINES, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines, self._clock = lines, clock
        self._begun = clock()
        self._written: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Pass the event on, or raise `structlog.DropEvent`."""
        name = str(event.get("event", ""))
        if name in _SUMMARIES:
            if self._dropped:
                event["suppressed"] = dict(self._dropped)
                self._dropped.clear()
            return event
        if method == "debug":
            return event
        now = self._clock()
        if now - self._begun >= _MINUTE:
            self._begun = now
            self._written.clear()
        if self._written[name] >= self._lines:
            self._dropped[name] += 1
            raise structlog.DropEvent
        self._written[name] += 1
        dropped = self._dropped.pop(name, 0)
        if dropped:
            event["suppressed"] = dropped
        return event
