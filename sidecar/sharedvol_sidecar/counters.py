"""What the sidecar counts. Each counter is declared once, and every output is made from its declaration.

The fields of `PassCounts` declare the counters of a pass. `events.BY_EVENT` has the counters of what happens outside of
passes. ``/metrics``, ``/status.json``, the status page, the log, the summary of ``once`` and the table in
docs/monitoring.md read these declarations, so a new counter is one new field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal

_KEY: Final = "counter"

LABELLED: Final = MappingProxyType(
    {
        "left_files": "Files the last pass left.",
        "errors": "What went wrong and is tried again.",
        "dropped": "What was not collected and will not be as it is: no error.",
    }
)
"""The metrics that have the label ``reason``, and their help."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A value of the label ``reason`` of a metric."""

    metric: str
    reason: str


@dataclass(frozen=True, slots=True)
class Counter:
    """The declaration of a counter.

    Attributes:
        name: its key in JSON and in the log.
        kind: ``done`` for what happened, which is added up; ``left`` for what the last pass found and left.
        unit: what is counted, in the plural.
        help: what it means, in one sentence.
        metric: the name in ``/metrics``, without prefix and suffix; or a reason of a metric that several share.
        onset: of what is left: where each of them is counted once while it stays.
        section: the key of ``/status.json`` that it is below.
        line: the line in the summary of ``once``, with ``{}`` for the number; empty for none.
    """

    name: str
    kind: Literal["done", "left"]
    unit: str
    help: str
    metric: str | Reason
    onset: Reason | None = None
    section: str = ""
    line: str = ""


def _done(unit: str, help: str, metric: str | Reason, line: str = "", section: str = "collected") -> Any:
    """Declare a field that counts what happened."""
    made = Counter("", "done", unit, help, metric, section=section, line=line)
    return field(default=0, metadata={_KEY: made})


def _left(unit: str, help: str, metric: str | Reason, line: str = "", onset: Reason | None = None) -> Any:
    """Declare a field that counts what a pass found and left."""
    made = Counter("", "left", unit, help, metric, onset, "left", line)
    return field(default=0, metadata={_KEY: made})


@dataclass(slots=True)
class PassCounts:
    """The counts of one pass, or of many."""

    collected: int = _done("files", "Files that were collected.", "collected_files")
    bytes: int = _done("bytes", "Bytes of the files that were collected.", "collected_bytes")
    kept_both: int = _done(
        "files",
        "Collected files whose name was taken by another file.",
        "kept_both_files",
        "  {} kept beside another file of the same name",
    )
    copied: int = _done(
        "files",
        "Collected files that were copied from another file system.",
        "copied_files",
        "  {} copied from another file system",
    )
    recovered: int = _done(
        "files",
        "Collected files that a mover which died had claimed.",
        "recovered_files",
        "  {} taken over from a sidecar that died",
    )
    unleased: int = _done(
        "files",
        "Collected files that were judged by the quiet time alone.",
        "unleased_files",
        "  {} judged by the quiet time alone, without a lease",
    )
    sealed: int = _done(
        "logs", "Collected logs that were followed before.", "sealed_logs", "  {} logs that were followed, and ended"
    )
    put_back: int = _done(
        "files",
        "Files that were put back because a writer opened them again.",
        "put_back_files",
        "put back {} files that a writer opened again",
    )
    followed: int = _done(
        "bytes", "Bytes taken from followed logs.", "followed_bytes", "followed {} of logs that are open"
    )
    truncated: int = _done(
        "logs",
        "Followed logs that were cut or changed; what was not copied before is lost.",
        Reason("dropped", "truncated"),
        "{} followed logs were cut or changed",
        section="dropped",
    )
    orphans_removed: int = _done(
        "directories",
        "Directories of dead containers that were removed.",
        "orphans_removed",
        "removed {} directories of dead containers",
        section="removed",
    )
    uncatalogued: int = _left(
        "files",
        "Files with their final name and without a row in the catalog, which waits for them.",
        "uncatalogued_files",
        "  {} in place, but the catalog could not be written",
    )
    writing: int = _left(
        "files",
        "Files that a process has open for writing.",
        Reason("left_files", "writing"),
        "left {}: open for writing",
    )
    settling: int = _left(
        "files",
        "Files that were changed less than the quiet time ago.",
        Reason("left_files", "settling"),
        "left {}: changed a moment ago",
    )
    unmatched: int = _left(
        "files",
        "Files in no source, or without a container in their name.",
        Reason("left_files", "unmatched"),
        "left {}: in no source, or without a container in their name",
        onset=Reason("dropped", "unmatched"),
    )
    refused: int = _left(
        "files",
        "Symbolic links, FIFOs, sockets, devices and other users' links, left as they are.",
        Reason("left_files", "refused"),
        "left {}: no regular files, or links to somebody else's",
        onset=Reason("dropped", "refused"),
    )
    unfinished: int = _left(
        "files",
        "Temporaries of writers that died.",
        Reason("left_files", "unfinished"),
        "left {}: unfinished, of a writer that died",
        onset=Reason("dropped", "unfinished"),
    )
    failed: int = _left(
        "files",
        "Files that could not be moved.",
        Reason("left_files", "failed"),
        "left {}: failed",
        onset=Reason("errors", "file"),
    )
    no_room: int = _left(
        "files",
        "Files and followed logs for which the destination has too little space.",
        "no_room_files",
        "  {} for which the destination has too little space",
    )
    denied: int = _left(
        "directories",
        "Directories of the destination that may not be written.",
        "denied_directories",
        "  {} directories of the destination may not be written",
    )
    elsewhere: int = _left(
        "containers",
        "Containers that another sidecar was working on.",
        "elsewhere_containers",
        "left {} containers to another sidecar",
    )

    def add(self, later: PassCounts) -> None:
        """Add what a later pass did, and replace what was left by what that pass left."""
        self.add_moved(later)
        for name in LEFT:
            setattr(self, name, getattr(later, name))

    def add_moved(self, other: PassCounts) -> None:
        """Add what the other counts say was done, and ignore what was left."""
        for name in DONE:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def since(self, earlier: PassCounts) -> PassCounts:
        """Return what was done since an earlier state of the same counts."""
        return PassCounts(**{name: getattr(self, name) - getattr(earlier, name) for name in DONE})

    def done(self) -> dict[str, int]:
        """Return what was done, as a line of the log shows it: the collected files are ``files`` there."""
        return {("files" if name == "collected" else name): getattr(self, name) for name in DONE}

    def left(self) -> dict[str, int]:
        """Return what was left."""
        return {name: getattr(self, name) for name in LEFT}

    def as_dict(self) -> dict[str, int]:
        """Return the JSON of ``once --json``."""
        return asdict(self)


COUNTERS: Final[tuple[Counter, ...]] = tuple(replace(one.metadata[_KEY], name=one.name) for one in fields(PassCounts))
"""The counters of a pass."""

DONE: Final = tuple(one.name for one in COUNTERS if one.kind == "done")
LEFT: Final = tuple(one.name for one in COUNTERS if one.kind == "left")
ONSETS: Final = tuple(one.name for one in COUNTERS if one.onset is not None)
"""What is left and counted once while it stays."""


def reasons(counters: Iterable[Counter], metric: str) -> tuple[str, ...]:
    """Return the reasons that the counters of one metric have, each once."""
    found = [place for one in counters for place in (one.metric, one.onset) if isinstance(place, Reason)]
    return tuple(dict.fromkeys(place.reason for place in found if place.metric == metric))
