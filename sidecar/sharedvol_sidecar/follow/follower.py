"""What a pass does with logs that stay open: it follows them, seals what is over, and stops for none of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.follow.open_logs import OpenLogs
from sharedvol_sidecar.follow.sealer import Sealer
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.item import Item


class LogFollower:
    """Follows the logs of one spool.

    Args:
        copies: the live copies.
        sealer: gives them their final names.
        locks: the locks that share out the work.
        ended: remembers logs that were sealed and still exist.
        events: receives the logs that are not followed.
    """

    def __init__(
        self, copies: LiveCopies, sealer: Sealer, locks: ContainerLocks, ended: EndedLogs, events: Events
    ) -> None:
        self._copies, self._sealer, self._locks, self._ended, self._events = copies, sealer, locks, ended, events
        self._records, self._seals = copies.records, copies.seals
        self._ticked = time.monotonic()

    def __len__(self) -> int:
        return len(self._records.logs)

    def new_pass(self) -> None:
        """Begin a pass."""
        self._records.new_pass()

    def refresh(self) -> None:
        """Learn what other sidecars follow by now."""
        self._records.refresh()

    def close(self) -> None:
        """Close what is open."""
        self._records.close()

    def leave_open(self, logs: OpenLogs) -> None:
        """Leave the logs open for the collector that comes after this one, which is closed next."""
        self._copies.leave_open(logs)

    def resume(self, logs: OpenLogs) -> None:
        """Continue with the logs that the collector before this one left open."""
        self._copies.resume(logs)

    def which(self, fd: int, inode: int) -> str:
        """Return the id of a followed file, else an empty string. Called for every file: the inode decides for most."""
        return self._copies.which(fd, inode)

    def grows(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        """A log that is not finished: follow it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        if not self.which(fd, info.st_ino):
            most = self._copies.options.most
            if len(self) >= most:
                detail = f"{most} logs are followed already: these wait in the spool until they are closed"
                self._events.unfollowed("", detail)
                return
            if self._ended.holds(fd, info.st_ino):
                return  # it came back, and its lines are in the destination already
        with self._copies.guarded(candidate.path), self._unit_of_record(candidate, fd, info.st_ino) as mine:
            log = self._copies.follow(candidate, fd, info) if mine else None
            if log is not None:
                self.advance(log)

    def tick(self, at_most_every: float = 0.0) -> None:
        """Follow the logs that have grown, without a scan.

        Args:
            at_most_every: do nothing if the last time was less than so many seconds ago.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        now = time.monotonic()
        if now - self._ticked < at_most_every:
            return
        self._ticked = now
        for log in self._copies.growing():
            with self._locks.holding(log.state.unit) as mine:
                if mine:
                    self.advance(log)

    def is_as_it_was(self, item: Item) -> bool:
        """Before a followed log is moved: what it held and holds no more is kept. False if that has to wait.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        with self._copies.guarded(item.candidate.path):
            log = self._records.logs.get(item.followed)
            # Its record may name another unit, which is held until the file has been moved.
            if log is None or not self._locks.acquire_now(log.state.unit):
                return False
            current = self._current(log)
            seal = self._seals.of(current) if current is not None else None
            if current is not None and seal is not None and seal.ended:
                current = self._sealer.reopen(current)
                seal = None
            if current is None:
                return False
            if seal is None and self._copies.was_cut(current.id, item.fd) is None:
                return True
            return self._continue(current) is not None
        return False

    def advance(self, log: FollowedLog) -> FollowedLog | None:
        """Copy what a log has grown by, into a new live copy if it was cut.

        Returns:
            The log as it is now; None where it is not followed any more, or cannot be now.
        """
        with self._copies.guarded(log.state.source, log):
            current = self._current(log)
            seal = self._seals.of(current) if current is not None else None
            if current is not None and seal is not None and seal.ended:
                if self._copies.has_copy(current) and not self._copies.has_changed(current):
                    return current  # it is still as it was sealed
                current = self._sealer.reopen(current)
                seal = None
            if current is None or (seal is None and self._copies.advance(current)):
                return current
            again = self._continue(current)
            if again is not None:
                self._copies.advance(again)
            return again
        return None

    def _current(self, log: FollowedLog) -> FollowedLog | None:
        """The log by its record as it is now; None if it ended, or is in a unit that this sidecar has not locked."""
        current = self._records.current(log)
        return current if current is not None and self._locks.holds(current.state.unit) else None

    def _continue(self, log: FollowedLog) -> FollowedLog | None:
        """Seal the copy of a log that was cut, and continue in a new one. A copy that cannot be named now waits."""
        sealed = self._sealer.seal(log)
        again = self._copies.next_generation(log)
        if sealed and again is not None:
            self._copies.end_seal(log)
        return again

    @contextlib.contextmanager
    def _unit_of_record(self, candidate: Candidate, fd: int, inode: int) -> Iterator[bool]:
        """Hold the unit that a log's record names, which is another one if the log was moved between containers.

        From then on the record names the unit in which the log was found. Yields whether the lock was had.
        """
        known = self._records.logs.get(self.which(fd, inode))
        log = self._records.current(known) if known is not None else None
        if log is None or log.state.unit == candidate.path.partition("/")[0]:
            yield True
            return
        with self._locks.holding(log.state.unit, wait=False) as mine:
            current = self._current(log) if mine else None
            if current is not None:
                self._copies.rehome(current, candidate.path)
            yield current is not None
