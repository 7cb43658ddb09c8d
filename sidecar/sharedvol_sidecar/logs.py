"""What a pass does with logs that stay open: it follows them, seals what is over, and stops for none of them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator

from sharedvol.errors import describe
from sharedvol_sidecar.admission import Logs
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.follow import Followed
from sharedvol_sidecar.follow_records import Log
from sharedvol_sidecar.inodes import inode_of
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.report import Event, Listener, Tally
from sharedvol_sidecar.scan import Candidate
from sharedvol_sidecar.units import Units

_OF_THE_LOG = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.EMFILE,
        errno.ENFILE,
    }
)


class LogKeeper:
    """Follows the logs of one spool.

    Args:
        followed: the copies.
        units: the locks that share out the work.
        logs: what to do with them at their end.
        move: moves items to their final names.
        claimed: the inodes of every claim.
        shown: what the destination is called.
        tell: told of problems.
        most: logs that are followed at once.
    """

    def __init__(
        self,
        followed: Followed,
        units: Units,
        logs: Logs,
        move: Callable[[list[Item], Tally], None],
        claimed: Callable[[], set[int]],
        shown: str,
        tell: Listener,
        most: int,
    ) -> None:
        self._followed, self._units, self._logs = followed, units, logs
        self._move, self._claimed, self._shown, self._tell = move, claimed, shown, tell
        self._records, self._most = followed.records, most
        self._ticked = time.monotonic()
        self.tally = Tally()
        """Counts what this pass does."""

    def __len__(self) -> int:
        return len(self._records.logs)

    def new_pass(self, tally: Tally) -> None:
        """A pass begins."""
        self.tally = tally
        self._records.refresh()

    def close(self) -> None:
        """Close what is open."""
        self._records.close()

    def which(self, fd: int, inode: int) -> str:
        """The id of a file that is followed, else empty. Asked for every file, so mostly told by the inode alone."""
        return self._followed.see(fd, inode) if inode in self._records.inodes else ""

    def grows(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        """A log that is not finished: follow it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        if len(self) >= self._most and not self.which(fd, info.st_ino):
            detail = f"{self._most} logs are followed already: these wait in the spool until they are closed"
            self._tell(Event("unfollowed", "", detail))
            return
        with self._guarded(candidate.path):
            self._advance(self._followed.follow(candidate, fd, info))

    def tick(self, tally: Tally, at_most_every: float = 0.0) -> None:
        """Follow the logs that have grown, without a scan.

        Args:
            tally: counts.
            at_most_every: do nothing if the last time was less than so many seconds ago.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        now = time.monotonic()
        if now - self._ticked < at_most_every:
            return
        self._ticked = now
        self.tally = tally
        for log in self._followed.growing():
            with self._units.held(log.state.unit) as mine:
                if mine:
                    self._advance(log)

    def is_as_it_was(self, item: Item) -> bool:
        """Before a followed log is moved: what it held and holds no more is kept. False if that has to wait.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        with self._guarded(item.candidate.path):
            log = self._followed.was_cut(item.followed, item.fd)
            if log is None:
                return True
            if self._seal(log):
                self._followed.next_generation(log)
                return True
        return False

    def end(self, skip: Callable[[str], bool]) -> None:
        """The logs that the pass did not see: those that are gone get their final names.

        Args:
            skip: whether nothing can be said of a unit, because it was not read, or another sidecar has it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        for log in list(self._records.logs.values()):
            if log.seen or skip(log.state.unit):
                continue
            with self._units.held(log.state.unit) as mine:
                if mine:
                    self._end(log)

    def _end(self, log: Log) -> None:
        self._advance(log)
        current = self._records.logs.get(log.id)
        if current is None or not self._followed.ended(current):
            return
        # A claim of it that a dead mover left is the log itself: that is moved.
        if inode_of(log.id) in self._claimed():
            return
        with self._guarded(current.state.source):
            if self._seal(current):
                self._followed.drop(current.id)

    def _advance(self, log: Log) -> None:
        """Copy what a log has grown by, into a new live file if it was cut."""
        with self._guarded(log.state.source):
            if self._followed.advance(log, self.tally) or not self._seal(log):
                return
            again = self._followed.next_generation(log)
            if again is not None:
                self._followed.advance(again, self.tally)

    def _seal(self, log: Log) -> bool:
        """Give a live file its final name. Whether it has it."""
        item = self._followed.sealing(log)
        if item is None:
            return True
        item.encoding = self._logs.encoding_of(item)
        self._move([item], self.tally)
        return item.done

    @contextlib.contextmanager
    def _guarded(self, path: str) -> Iterator[None]:
        """One log that cannot be followed does not stop the others, a destination that fails does."""
        try:
            yield
        except OSError as error:
            if error.errno not in _OF_THE_LOG:
                raise DestinationError(
                    f"cannot follow {path!r} into {self._shown!r}: {describe(error)}; nothing was lost, it stays in "
                    "the spool"
                ) from error
            self.tally.failed += 1
            self._tell(Event("failed", path, f"cannot be followed: {describe(error)}"))


def skips(unread: Collection[str], there: Collection[str], entered: Collection[str]) -> Callable[[str], bool]:
    """Of which units a pass can say nothing.

    Args:
        unread: those that could not be read whole.
        there: those that are there.
        entered: those that this sidecar had.
    """
    return lambda unit: unit in unread or (unit in there and unit not in entered)
