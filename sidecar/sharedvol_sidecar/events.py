"""What happened: counts, and problems that are told once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Final

from sharedvol_sidecar.counters import ByEvent, Reason, declared, done, left

_DROPPED = "dropped"


@dataclass(slots=True)
class PassCounts:
    """Counts of one pass, or of many. Each field declares its counter, see `counters`."""

    collected: int = done("files", "Files that were collected.", "collected_files")
    bytes: int = done("bytes", "Bytes of the files that were collected.", "collected_bytes")
    kept_both: int = done(
        "files",
        "Collected files whose name was taken by another file.",
        "kept_both_files",
        "  {} kept beside another file of the same name",
    )
    copied: int = done(
        "files",
        "Collected files that were copied from another file system.",
        "copied_files",
        "  {} copied from another file system",
    )
    recovered: int = done(
        "files",
        "Collected files that a mover which died had claimed.",
        "recovered_files",
        "  {} taken over from a sidecar that died",
    )
    unleased: int = done(
        "files",
        "Collected files that were judged by the quiet time alone.",
        "unleased_files",
        "  {} judged by the quiet time alone, without a lease",
    )
    sealed: int = done(
        "logs", "Collected logs that were followed before.", "sealed_logs", "  {} logs that were followed, and ended"
    )
    put_back: int = done(
        "files",
        "Files that were put back because a writer opened them again.",
        "put_back_files",
        "put back {} files that a writer opened again",
    )
    followed: int = done(
        "bytes", "Bytes taken from followed logs.", "followed_bytes", "followed {} of logs that are open"
    )
    truncated: int = done(
        "logs",
        "Followed logs that were cut or changed; what was not copied before is lost.",
        Reason(_DROPPED, "truncated"),
        "{} followed logs were cut or changed",
        section=_DROPPED,
    )
    orphans_removed: int = done(
        "directories",
        "Directories of dead containers that were removed.",
        "orphans_removed",
        "removed {} directories of dead containers",
        section="removed",
    )
    uncatalogued: int = left(
        "files",
        "Files with their final name and without a row in the catalog, which waits for them.",
        "uncatalogued_files",
        "  {} in place, but the catalog could not be written",
    )
    writing: int = left(
        "files",
        "Files that a process has open for writing.",
        Reason("left_files", "writing"),
        "left {}: open for writing",
    )
    settling: int = left(
        "files",
        "Files that were changed less than the quiet time ago.",
        Reason("left_files", "settling"),
        "left {}: changed a moment ago",
    )
    unmatched: int = left(
        "files",
        "Files in no source, or without a container in their name.",
        Reason("left_files", "unmatched"),
        "left {}: in no source, or without a container in their name",
        onset=Reason(_DROPPED, "unmatched"),
    )
    refused: int = left(
        "files",
        "Symbolic links, FIFOs, sockets, devices and other users' links, left as they are.",
        Reason("left_files", "refused"),
        "left {}: no regular files, or links to somebody else's",
        onset=Reason(_DROPPED, "refused"),
    )
    unfinished: int = left(
        "files",
        "Temporaries of writers that died.",
        Reason("left_files", "unfinished"),
        "left {}: unfinished, of a writer that died",
        onset=Reason(_DROPPED, "unfinished"),
    )
    failed: int = left(
        "files",
        "Files that could not be moved.",
        Reason("left_files", "failed"),
        "left {}: failed",
        onset=Reason("errors", "file"),
    )
    no_room: int = left(
        "files",
        "Files and followed logs for which the destination has too little space.",
        "no_room_files",
        "  {} for which the destination has too little space",
    )
    denied: int = left(
        "directories",
        "Directories of the destination that may not be written.",
        "denied_directories",
        "  {} directories of the destination may not be written",
    )
    elsewhere: int = left(
        "containers",
        "Containers that another sidecar was working on.",
        "elsewhere_containers",
        "left {} containers to another sidecar",
    )

    def add(self, later: PassCounts) -> None:
        """Count a later pass too: what it did is added, what is left in the spool is as it saw it."""
        self.add_moved(later)
        for name in LEFT:
            setattr(self, name, getattr(later, name))

    def add_moved(self, other: PassCounts) -> None:
        """Count what the other did, and not what it left."""
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
        """The JSON of ``once --json``."""
        return asdict(self)


COUNTERS: Final = declared(PassCounts)
DONE: Final = tuple(one.name for one in COUNTERS if one.kind == "done")
LEFT: Final = tuple(one.name for one in COUNTERS if one.kind == "left")
ONSETS: Final = tuple(one.name for one in COUNTERS if one.onset is not None)
"""What is left and counted once while it stays."""


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
        counts: the counter that it adds one to; None for the events of a pass, whose `PassCounts` counts.
    """

    name: str
    path: str
    detail: str
    container: str = ""
    size: int | None = None
    age: float | None = None
    counts: ByEvent | None = None


Listener = Callable[[Event], None]


Saw = Callable[[str], bool]
"""Returns whether a pass has read all of a directory at the top of the spool; the empty name is the spool itself."""

_NOWHERE = "/"  # stands for the directory of a problem without a path, and is not the name of one


class Deduplicator:
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
        if event.counts or event.name in self.REPEATED:
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
