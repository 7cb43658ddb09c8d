"""The names of the files of a `sharedvol.logs.ReplicaFileHandler`. Each contains the replica's name.

::

    3f9c0d1e2b4a_20260131.log            the first of the day, in R's form
    log-20260131-2_3f9c0d1e2b4a.log      the second, and so on
    api-20260131_3f9c0d1e2b4a.log        the first one of a handler with the name "api"
"""

from __future__ import annotations

import itertools
from datetime import date as Date

from sharedvol.errors import InvalidNameError
from sharedvol.identity import worker_token
from sharedvol.paths import container_path, log_path

MAX_NUMBER = 1000
"""How many numbered names are tried before a unique name is made."""


class LogNames:
    """The names of a replica's logs.

    Args:
        name: the beginning of the names; None for R's form.
        container: the replica's name.

    Raises:
        InvalidNameError: ``name`` cannot be part of a file name.
    """

    def __init__(self, name: str | None, container: str) -> None:
        self._name, self._container = name, container
        self._made = itertools.count(1)
        if name is not None and (not name or name.startswith(".")):
            raise InvalidNameError(f"log name {name!r} is empty or hidden, and hidden files are never collected")
        self.number(Date.max, MAX_NUMBER)
        self.unique(Date.max)

    def number(self, day: Date | None, number: int) -> str:
        """Return the name of the day's log with a number, counted from 1. ``day`` is None for logs without a day."""
        if number == 1 and day is not None and self._name is None:
            return log_path("", container=self._container, date=day).name
        more = f"-{number}" if number > 1 else ""
        return container_path("", f"{self._stem(day)}{more}.log", container=self._container).name

    def unique(self, day: Date | None) -> str:
        """Return a name that is never made again, in the form of `sharedvol.unique_path`."""
        who = f"{self._container}_u{worker_token()}-{next(self._made)}"
        return container_path("", f"{self._stem(day)}.log", container=who).name

    def _stem(self, day: Date | None) -> str:
        of = "" if day is None else f"-{day.year:04}{day:%m%d}"
        return f"{self._name or 'log'}{of}"
