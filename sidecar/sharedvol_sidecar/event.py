"""An event, and the declaration of its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sharedvol_sidecar.counters import Counter

Page = Literal["recent", "errors", "dropped", "notes"]
"""A list of the status page."""


@dataclass(frozen=True, slots=True, eq=False)
class EventKind:
    """The declaration of an event.

    Attributes:
        name: the name of the event, as the status page and ``/status.json`` show it.
        page: the list of the status page that it is in.
        level: its level in the log.
        repeats: whether it happens, so that each is reported. Otherwise it is a state that every pass finds again, and
            is reported once while it lasts.
        linger: seconds for which a state is remembered though no pass finds it.
        is_container: whether its path is a directory at the top of the spool.
        counts: the counter that it adds one to, where that is not a counter of a pass.
        log_name: its name in the log, where that is another one.
    """

    name: str
    page: Page = "notes"
    level: int = logging.WARNING
    repeats: bool = False
    linger: float = 0.0
    is_container: bool = False
    counts: Counter | None = None
    log_name: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the operator may want to know.

    Attributes:
        kind: its declaration.
        path: the file, relative to the spool where it is in the spool.
        detail: in words; of a collected file, where it is now.
        container: whose file it is, where that is known.
        size: of the file, in bytes, where that is known.
        age: of a collected file, the seconds from its last change until it was collected.
    """

    kind: EventKind
    path: str
    detail: str
    container: str = ""
    size: int | None = None
    age: float | None = None

    @property
    def name(self) -> str:
        """The name of its kind."""
        return self.kind.name


Listener = Callable[[Event], None]
