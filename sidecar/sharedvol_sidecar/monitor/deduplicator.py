"""Reports each problem once while it lasts, and a bounded number of many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from sharedvol_sidecar.event import Event, EventKind, Listener

Saw = Callable[[str], bool]
"""Returns whether a pass has read all of a directory at the top of the spool; the empty name is the spool itself."""

_NOWHERE = "/"  # the key of problems without a path; no directory has this name


def _everything(directory: str) -> bool:
    return True


class Deduplicator:
    """Passes on each problem once while it lasts, and only some of many.

    It passes on at most `EACH` problems of one kind in one directory at the top of the spool, and `ALL` in all of them.
    One line sums up the rest, and is repeated when their number has doubled. So neither its memory nor its output grows
    with the spool. A problem that a pass no longer finds is forgotten.

    Args:
        listener: receives the events.
        clock: a monotonic clock, in seconds.
    """

    EACH, ALL = 20, 200

    def __init__(self, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener, self._clock = listener, clock
        self._kinds: dict[EventKind, _Problems] = {}

    def __call__(self, event: Event) -> None:
        """Pass an event on if it is new."""
        kind = event.kind
        if kind.repeats:
            self._listener(event)
            return
        problems = self._kinds.get(kind)
        if problems is None:
            problems = self._kinds[kind] = _Problems(self.EACH, self.ALL, kind.linger, self._clock)
        if problems.is_news(_top(event), hash(event)):
            self._listener(event)

    def end_pass(self, saw: Saw = _everything) -> None:
        """Sum up what was not passed on one by one, and forget what the pass that ended did not find.

        Args:
            saw: whether the pass has read all of a directory.
        """
        for kind, problems in self._kinds.items():
            for directory, more in problems.end_pass(saw):
                self._listener(Event(kind, directory.strip("/"), f"and {more:,} more"))


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
    return head if slash or event.kind.is_container else ""
