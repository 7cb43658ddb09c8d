"""What happened: counts, and problems that are told once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

LEFT = ("writing", "settling", "unmatched", "refused", "unfinished", "failed", "no_room", "denied", "elsewhere")
"""The counts of a `Tally` that say what a pass left. The others say what it moved."""


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
        for name in LEFT:
            setattr(self, name, getattr(later, name))

    def add_moved(self, other: Tally) -> None:
        """Count what the other moved, and not what it left."""
        for field in fields(self):
            if field.name not in LEFT:
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
            ``orphan_removed``, ``orphan_kept``, ``catalog``, ``pruned``, ``would_prune`` or ``network_file_system``.
        path: the file, relative to the spool where it is in it.
        detail: in words; of a collected file, where it is now.
        container: whose file it is, where that is known.
        size: of the file, in bytes, where that is known.
        age: of a collected file, the seconds from its last change until it was collected.
    """

    name: str
    path: str
    detail: str
    container: str = ""
    size: int | None = None
    age: float | None = None


Listener = Callable[[Event], None]


Saw = Callable[[str], bool]
"""Returns whether a pass has read all of a directory at the top of the spool; the empty name is the spool itself."""

_NOWHERE = "/"  # stands for the directory of a problem without a path, and is not the name of one


class Once:
    """Passes on each problem once while it lasts, and only some of many.

    Of each kind it passes on at most `EACH` problems in one directory at the top of the spool, and `ALL` in all of
    them. The rest is one line with their number, again when that number has doubled. So its memory, and what it
    passes on, do not grow with what is in the spool. A problem that a pass no longer finds is forgotten.

    Args:
        listener: receives the events.
        clock: a monotonic clock, in seconds.
    """

    EACH, ALL = 20, 200
    LINGER: ClassVar = {"failed": 120.0}
    """Seconds for which a problem is remembered though no pass finds it: a failed file is not tried every time."""

    REPEATED = frozenset(
        {"collected", "put_back", "followed", "truncated", "returned", "orphan_removed", "pruned", "catalog"}
    )
    """Events of what happens, which is not a state that every pass finds again. Each is passed on."""

    def __init__(self, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener, self._clock = listener, clock
        self._kinds: dict[str, _Problems] = {}

    def __call__(self, event: Event) -> None:
        if event.name in self.REPEATED:
            self._listener(event)
            return
        problems = self._kinds.get(event.name)
        if problems is None:
            linger = self.LINGER.get(event.name, 0.0)
            problems = self._kinds[event.name] = _Problems(self.EACH, self.ALL, linger, self._clock)
        if problems.is_news(_top(event), hash(event)):
            self._listener(event)

    def end_pass(self, saw: Saw = lambda directory: True) -> None:
        """A pass has ended: sum up what was not passed on one by one, and forget what it did not find.

        Args:
            saw: whether the pass has read all of a directory.
        """
        for name, problems in self._kinds.items():
            for directory, more in problems.end_pass(saw):
                self._listener(Event(name, directory.strip("/"), f"and {more:,} more"))


class _Problems:
    """What was passed on of one kind of problem.

    Args:
        each: how many problems of one directory are passed on.
        all: how many problems of all directories are passed on.
        linger: seconds for which a problem is remembered that no pass finds.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, each: int, all: int, linger: float, clock: Callable[[], float]) -> None:
        self._each, self._all, self._linger, self._clock = each, all, linger, clock
        self._known: dict[str, dict[int, float]] = {}  # by directory: a problem's hash, and when it was found last
        self._count = 0
        self._more: Counter[str] = Counter()
        self._summed_up: dict[str, int] = {}
        self._began = clock()

    def is_news(self, directory: str, problem: int) -> bool:
        """Return whether to pass a problem on; count it if it is one of too many."""
        known = self._known.get(directory)
        if known is not None and problem in known:
            known[problem] = self._clock()
            return False
        if self._count >= self._all or (known is not None and len(known) >= self._each):
            self._more[directory if known is not None else ""] += 1
            return False
        self._known.setdefault(directory, {})[problem] = self._clock()
        self._count += 1
        return True

    def end_pass(self, saw: Saw) -> list[tuple[str, int]]:
        """Return the directories that have a new number of other problems, each with that number."""
        self._forget(saw)
        news = []
        for directory in {*self._more, *self._summed_up}:
            more, before = self._more[directory], self._summed_up.get(directory, 0)
            if more >= max(1, 2 * before):
                news.append((directory, more))
            elif not saw(directory) or 2 * more >= before:
                continue
            self._summed_up[directory] = more
        self._summed_up = {name: count for name, count in self._summed_up.items() if count and self._is_known(name)}
        self._more.clear()
        self._began = self._clock()
        return sorted(news)

    def _is_known(self, directory: str) -> bool:
        return directory == "" or directory in self._known

    def _forget(self, saw: Saw) -> None:
        since = self._began - self._linger
        for directory in [one for one in self._known if one != _NOWHERE and saw(one)]:
            known = self._known[directory]
            left = {problem: found for problem, found in known.items() if found >= since}
            self._count -= len(known) - len(left)
            if left:
                self._known[directory] = left
            else:
                del self._known[directory]


def _top(event: Event) -> str:
    """Return the directory at the top of the spool that an event is about; empty for the spool itself."""
    head, slash, _ = event.path.partition("/")
    if not head:
        return _NOWHERE
    return head if slash or event.name == "orphan_kept" else ""
