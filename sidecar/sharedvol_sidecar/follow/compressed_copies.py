"""Warn of a rotation that compresses logs which the sidecar follows: their lines are collected twice.

logrotate with ``compress`` writes ``app.log.1.gz`` and deletes ``app.log.1``. The sidecar has followed that log, so its
live copy gets a final name, and the compressed file is collected as a file of its own. Only unpacking every compressed
file would show that both hold the same lines. So both are kept, nothing is lost, and the operator is warned.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from sharedvol.paths import split_suffix
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.content import PACKED
from sharedvol_sidecar.spool.scanner import Candidate

_DETAIL = (
    "a compressed file of this name is in the spool, so the log's lines will be there twice: set nocompress in "
    "logrotate, and use the sidecar's --compress instead"
)
_REMEMBERED = 10_000
_MOST = 1_000  # compressed files of one pass that are looked up
_TAIL = re.compile(r"[-._]\d[-._:\dTZ]*")  # what a rotation adds: a number, a date, a time
_ROTATED = re.compile(rf"(.+?){_TAIL.pattern}", re.DOTALL)


class CompressedCopies:
    """Remembers which logs were followed, and compares compressed files with them.

    Args:
        kinds: the kinds whose logs are followed.
        events: receives one event for each log.
    """

    def __init__(self, kinds: tuple[str, ...], events: Events) -> None:
        self._kinds, self._events = kinds, events
        self._followed: dict[str, set[str]] = {}
        self._order: OrderedDict[str, None] = OrderedDict()
        self._reported: set[str] = set()
        self._found: list[str] = []

    def new_pass(self) -> None:
        """Begin a pass: no compressed file was seen yet."""
        self._found = []

    def see(self, candidate: Candidate) -> None:
        """Note a file that the scan found."""
        if candidate.name.endswith(PACKED) and candidate.origin.kind in self._kinds and len(self._found) < _MOST:
            self._found.append(candidate.path)

    def end(self, followed: Iterable[str]) -> None:
        """Warn of each log of which this pass found a compressed copy.

        Args:
            followed: the paths in the spool of the logs that are followed now.
        """
        for path in followed:
            directory, _, name = path.rpartition("/")
            self._remember(f"{directory}/{_before_rotation(name)}")
        for found in self._found:
            log = self._log_of(found)
            if log is not None and log not in self._reported and len(self._reported) < _REMEMBERED:
                self._reported.add(log)
                self._events.compressed_copy(log, _DETAIL)

    def _remember(self, path: str) -> None:
        if path in self._order:
            self._order.move_to_end(path)
            return
        self._order[path] = None
        directory, _, name = path.rpartition("/")
        self._followed.setdefault(directory, set()).add(name)
        if len(self._order) > _REMEMBERED:
            directory, _, name = self._order.popitem(last=False)[0].rpartition("/")
            self._followed[directory].discard(name)
            if not self._followed[directory]:
                del self._followed[directory]

    def _log_of(self, path: str) -> str | None:
        """The followed log of which a file is a compressed copy; logrotate may put it below the log's directory."""
        directory, _, name = path.rpartition("/")
        name = next(name.removesuffix(suffix) for suffix in PACKED if name.endswith(suffix))
        for place in _and_above(directory):
            matching = [log for log in self._followed.get(place, ()) if _is_rotation(name, log)]
            if matching:
                return f"{place}/{min(matching, key=len)}"
        return None


def _and_above(directory: str) -> Iterator[str]:
    while directory:
        yield directory
        directory = directory.rpartition("/")[0]


def _before_rotation(name: str) -> str:
    """The log's own name, if it was rotated before it was first followed: ``app.log`` of ``app.log.1``."""
    found = _ROTATED.fullmatch(name)
    return found[1] if found is not None and split_suffix(found[1])[1] else name


def _is_rotation(name: str, log: str) -> bool:
    """Whether a rotation of ``log`` has this name, such as ``app.log.1`` or ``app-20260131.log``."""
    if name == log:
        return True
    stem, suffix = split_suffix(log)
    return any(
        name.startswith(begin) and name.endswith(end) and _TAIL.fullmatch(name, len(begin), len(name) - len(end))
        for begin, end in ((log, ""), (stem, suffix))
    )
