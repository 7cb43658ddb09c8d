"""What a pass does with logs that stay open: it follows them, seals what is over, and stops for none of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator

from sharedvol.errors import describe
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.compressed_copies import CompressedCopies
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.follow.open_logs import OpenLogs
from sharedvol_sidecar.follow.seals import parse
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.admission import Logs
from sharedvol_sidecar.transfer.item import Item


class LogFollower:
    """Follows the logs of one spool.

    Args:
        followed: the copies.
        units: the locks that share out the work.
        logs: what to do with them at their end.
        move: moves items to their final names.
        withdraw: takes back the final name of a live copy, and its row in the catalog.
        claimed: whether a log, by its id, is a claim.
        sees: whether a scan by these settings finds a file at that path of the spool.
        has_older: whether a sidecar of a release that sets no marks is running.
        ended: remembers logs that were sealed and still exist.
        shown: what the destination is called.
        events: counts and reports what happens to the logs.
        most: logs that are followed at once.
    """

    def __init__(
        self,
        followed: LiveCopies,
        units: ContainerLocks,
        logs: Logs,
        move: Callable[[list[Item]], None],
        withdraw: Callable[[Item], None],
        claimed: Callable[[str], bool],
        sees: Callable[[str], bool],
        has_older: Callable[[], bool],
        ended: EndedLogs,
        shown: str,
        events: Events,
        most: int,
    ) -> None:
        self._followed, self._units, self._logs = followed, units, logs
        self._move, self._withdraw, self._claimed, self._sees = move, withdraw, claimed, sees
        self._has_older = has_older
        self._ended, self._shown, self._events = ended, shown, events
        self._records, self._seals, self._most = followed.records, followed.seals, most
        self._compressed = CompressedCopies(logs.kinds, events)
        self._known: dict[str, int] = {}
        self._known_first = 0
        self._ticked = time.monotonic()

    def __len__(self) -> int:
        return len(self._records.logs)

    def new_pass(self) -> None:
        """Begin a pass."""
        self._records.new_pass()
        self._compressed.new_pass()
        self._known.clear()
        self._known_first = self._records.loaded

    def see(self, candidate: Candidate) -> None:
        """Note a file that the scan found: it may be a compressed copy of a followed log."""
        self._compressed.see(candidate)

    def refresh(self) -> None:
        """Learn what other sidecars follow by now."""
        self._records.refresh()

    def entered(self, unit: str) -> None:
        """Note that the scan of a unit, whose lock is held, begins. It judges only logs that are known by now."""
        self._known[unit] = self._records.loaded

    def close(self) -> None:
        """Close what is open."""
        self._records.close()

    def leave_open(self, logs: OpenLogs) -> None:
        """Leave the logs open for the collector that comes after this one, which is closed next."""
        self._followed.leave_open(logs, self._most)

    def resume(self, logs: OpenLogs) -> None:
        """Continue with the logs that the collector before this one left open."""
        self._followed.resume(logs)

    def which(self, fd: int, inode: int) -> str:
        """Return the id of a followed file, else an empty string. Called for every file: the inode decides for most."""
        return self._followed.which(fd, inode)

    def grows(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        """A log that is not finished: follow it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        if not self.which(fd, info.st_ino):
            if len(self) >= self._most:
                detail = f"{self._most} logs are followed already: these wait in the spool until they are closed"
                self._events.unfollowed("", detail)
                return
            if self._ended.holds(fd, info.st_ino):
                return  # it came back, and its lines are in the destination already
        with self._guarded(candidate.path), self._unit_of_record(candidate, fd, info.st_ino) as mine:
            log = self._followed.follow(candidate, fd, info) if mine else None
            if log is not None:
                self._advance(log)

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
            log = self._records.logs.get(item.followed)
            # Its record may name another unit, which is held until the file has been moved.
            if log is None or not self._units.take_now(log.state.unit):
                return False
            current = self._current(log)
            seal = self._seals.of(current) if current is not None else None
            if current is not None and seal is not None and seal.ended:
                current = self._reopen(current)
                seal = None
            if current is None:
                return False
            if seal is None and self._followed.was_cut(current.id, item.fd) is None:
                return True
            return self._continue(current) is not None
        return False

    def end(self, skip: Callable[[str], bool]) -> None:
        """The logs that the pass did not see: those that are gone get their final names.

        Args:
            skip: whether nothing can be said of a unit, because it was not read, or another sidecar has it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        self._events.still_failed(len(self._records.damaged))
        self._events.no_room(sum(log.short for log in self._records.logs.values()))
        self._compressed.end(log.state.source for log in self._records.logs.values())
        self._finish_seals()
        for log in list(self._records.logs.values()):
            unit = log.state.unit
            if log.seen or skip(unit):
                continue
            if not self._sees(log.state.source):
                self._leave_to_others(log)
                continue
            with self._units.held(unit) as mine:
                if mine:
                    self._end(log, self._known.get(unit, self._known_first))

    def _leave_to_others(self, log: FollowedLog) -> None:
        """Report a log that these settings do not show, and that no other sidecar takes care of."""
        log.miss()
        if self._followed.is_unwatched(log):
            detail = (
                "it was followed by other settings, and no running sidecar sees it, so its live copy is not finished: "
                "run a sidecar once with the --kinds and --pattern that show it"
            )
            self._events.unfollowed(log.state.source, detail)

    def _end(self, log: FollowedLog, known: int) -> None:
        if log.known_since <= known:
            log.miss()
        current = self._advance(log)
        if current is None or current.known_since > known or not self._followed.ended(current):
            return
        if current.fd < 0 and self._has_older():
            return  # that sidecar may have the log open, and cannot show it
        # Once more: its writer may have written between the last copy and the moment it closed the log.
        current = self._advance(current)
        if current is None or current.known_since > known or not self._followed.is_whole(current):
            return
        # A claim of it that a dead mover left is the log itself: that is moved.
        if self._claimed(log.id):
            return
        with self._guarded(current.state.source, current):
            if self._seal(current, ended=True):
                self._followed.drop(current.id)

    def _advance(self, log: FollowedLog) -> FollowedLog | None:
        """Copy what a log has grown by, into a new live copy if it was cut.

        Returns:
            The log as it is now; None where it is not followed any more, or cannot be now.
        """
        with self._guarded(log.state.source, log):
            current = self._current(log)
            seal = self._seals.of(current) if current is not None else None
            if current is not None and seal is not None and seal.ended:
                if self._followed.has_copy(current) and not self._followed.has_changed(current):
                    return current  # it is still as it was sealed
                current = self._reopen(current)
                seal = None
            if current is None or (seal is None and self._followed.advance(current)):
                return current
            again = self._continue(current)
            if again is not None:
                self._followed.advance(again)
            return again
        return None

    def _current(self, log: FollowedLog) -> FollowedLog | None:
        """The log by its record as it is now; None if it ended, or is in a unit that this sidecar has not locked."""
        current = self._records.current(log)
        return current if current is not None and self._units.holds(current.state.unit) else None

    def _continue(self, log: FollowedLog) -> FollowedLog | None:
        """Seal the copy of a log that was cut, and continue in a new one. A copy that cannot be named now waits."""
        sealed = self._seal(log)
        again = self._followed.next_generation(log)
        if sealed and again is not None:
            self._followed.end_seal(log)
        return again

    def _reopen(self, log: FollowedLog) -> FollowedLog | None:
        """Follow a log again that a sidecar had begun to end. None if its copy has only the final name by now."""
        item = self._followed.sealing(log)
        if item is None:
            self._followed.drop(log.id)
            return None
        try:
            item.encoding = self._logs.encoding_of(item)
            self._followed.reopen(item, self._withdraw)
        finally:
            item.close()
        self._ended.forget(log.id)
        self._seals.remove(log)
        return log

    def _finish_seals(self) -> None:
        """Give their final names to the copies of earlier generations that could not have them before."""
        self._records.refresh()
        for id, generation in parse(self._records.seals):
            seal = self._seals.read(id, generation)
            if seal is None:
                continue
            with self._units.held(seal.state.unit, wait=False) as mine, self._guarded(seal.state.source):
                if mine:
                    self._finish_seal(id, generation)

    def _finish_seal(self, id: str, generation: int) -> None:
        known = self._records.logs.get(id)
        current = self._records.current(known) if known is not None else None
        seal = self._seals.read(id, generation)
        if seal is None or not self._units.holds(seal.state.unit):
            return
        if current is not None and current.state.generation == generation:
            return  # that is left to the steps for the log itself
        log = FollowedLog.of(id, seal.state)
        try:
            if self._name(log, remember=seal.ended):
                self._followed.end_seal(log)
        finally:
            log.close()

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
        with self._units.held(log.state.unit, wait=False) as mine:
            current = self._current(log) if mine else None
            if current is not None:
                self._followed.rehome(current, candidate.path)
            yield current is not None

    def _seal(self, log: FollowedLog, *, ended: bool = False) -> bool:
        """Give a live copy its final name, and note that first. Return whether it has it, and its row."""
        if not self._followed.has_copy(log):
            return True
        self._seals.begin(log, ended)
        return self._name(log, remember=ended and not self._followed.is_deleted(log))

    def _name(self, log: FollowedLog, *, remember: bool) -> bool:
        """Give a live copy its final name, and remember that if the log may come back. Return whether it has it."""
        item = self._followed.sealing(log)
        if item is None:
            return True
        if remember:
            item.ended = log.id
        item.encoding = self._logs.encoding_of(item)
        self._followed.settle_encoding(item)
        self._move([item])
        return item.done

    @contextlib.contextmanager
    def _guarded(self, path: str, log: FollowedLog | None = None) -> Iterator[None]:
        """One log that cannot be followed does not stop the others, a destination that fails does."""
        try:
            yield
        except OSError as error:
            failure = self._followed.failure(error)
            if failure is not None:
                kept = "nothing was lost, it stays in the spool"
                if log is not None and log.is_hidden:
                    kept = "it was deleted or moved, so only this process can read the rest of it: keep it running"
                message = f"cannot follow {path!r} into {self._shown!r}: {describe(failure)}; {kept}"
                raise DestinationError(message) from failure
            self._events.failed(path, f"cannot be followed: {describe(error)}")


def skips(unread: Collection[str], there: Collection[str], entered: Collection[str]) -> Callable[[str], bool]:
    """Tell of which units a pass can say nothing.

    Args:
        unread: those that could not be read whole.
        there: those that are there.
        entered: those that this sidecar had.
    """
    return lambda unit: unit in unread or (unit in there and unit not in entered)
