"""What happened: counts, and problems that are told once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

_REMEMBERED = 10_000
_LEFT = frozenset(
    {
        "writing",
        "settling",
        "unmatched",
        "refused",
        "unfinished",
        "failed",
        "no_room",
        "denied",
        "elsewhere",
    }
)


@dataclass(slots=True)
class Tally:
    """Counts of one pass, or of many.

    Attributes:
        collected: files that are in the destination now and were not before.
        bytes: their sizes together.
        kept_both: of those, files whose name was taken by another file.
        copied: of those, files that were copied from another file system.
        recovered: of those, files that a mover which died had claimed.
        unleased: of those, files that went by the quiet time alone, as no lease could be had.
        put_back: files that a writer opened again while they were moved; they stay for later.
        followed: bytes that were copied from logs which are still open.
        sealed: of the collected, logs that were followed before.
        uncatalogued: files that have their final name, and no row in the catalog yet.
        writing: files left because a process has them open for writing.
        settling: files left because they were changed less than the quiet time ago.
        unmatched: files left because they are in no source, or their name tells no container.
        refused: symbolic links, FIFOs, sockets and devices, left as they are.
        unfinished: temporaries that a dead writer left.
        failed: files that could not be moved, for the reasons that were told.
        no_room: of those, the ones for which the destination has too little space.
        denied: directories of the destination that may not be written.
        elsewhere: containers that another sidecar was working on.
    """

    collected: int = 0
    bytes: int = 0
    kept_both: int = 0
    copied: int = 0
    recovered: int = 0
    unleased: int = 0
    put_back: int = 0
    followed: int = 0
    sealed: int = 0
    uncatalogued: int = 0
    writing: int = 0
    settling: int = 0
    unmatched: int = 0
    refused: int = 0
    unfinished: int = 0
    failed: int = 0
    no_room: int = 0
    denied: int = 0
    elsewhere: int = 0

    def add(self, later: Tally) -> None:
        """Count a later pass too: what it moved is added, what is left in the spool is as it saw it."""
        self.add_moved(later)
        for name in _LEFT:
            setattr(self, name, getattr(later, name))

    def add_moved(self, other: Tally) -> None:
        """Count what the other moved, and not what it left."""
        for field in fields(self):
            if field.name not in _LEFT:
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, int]:
        """The JSON of ``once --json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the operator may want to know.

    Attributes:
        name: ``collected``, ``put_back``, ``refused``, ``unmatched``, ``failed``, ``unfinished``, ``unleased``,
            ``scan_only``, ``followed``, ``unfollowed``, ``truncated``, ``returned``, ``compressed_copy``,
            ``orphan_removed``, ``orphan_kept``, ``catalog``, ``pruned`` or ``would_prune``.
        path: the file, relative to the spool where it is in it.
        detail: in words; of a collected file, where it is now.
        container: whose file it is, where that is known.
        size: of the file, in bytes, where that is known.
    """

    name: str
    path: str
    detail: str
    container: str = ""
    size: int | None = None


Listener = Callable[[Event], None]


class Once:
    """Passes on each problem once, however often it is seen; remembers the last 10,000."""

    # That the catalog fails is told at each onset, by its register.
    _REPEATED = frozenset(
        {"collected", "put_back", "followed", "truncated", "returned", "orphan_removed", "pruned", "catalog"}
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._told: OrderedDict[Event, None] = OrderedDict()

    def __call__(self, event: Event) -> None:
        if event.name not in self._REPEATED:
            if event in self._told:
                self._told.move_to_end(event)
                return
            self._told[event] = None
            if len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        self._listener(event)
