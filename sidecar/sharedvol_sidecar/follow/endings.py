"""Find the logs that have ended, after a pass that did not see them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from typing import Protocol

from sharedvol_sidecar.follow.follower import LogFollower
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.follow.marks import is_marked_by_others, is_watched
from sharedvol_sidecar.follow.sealer import Sealer
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.layout import Layout
from sharedvol_sidecar.transfer.claims import Claims

_SCANS = 3  # in a row that do not see a log: a rename during a scan hides a log from it
_SCANS_NEVER_SEEN = 2  # the same of a log that this process has never seen


class Releases(Protocol):
    """Knows which releases of the sidecar run on a spool."""

    def has_older(self) -> bool:
        """Return whether a sidecar of a release that sets no marks is running."""


class LogEndings:
    """Decides which logs have ended.

    Args:
        follower: copies what a log has grown by.
        copies: the live copies.
        sealer: gives them their final names.
        locks: the locks that share out the work.
        layout: what a scan by these settings finds.
        claims: the claims: a claimed log has not ended.
        releases: knows whether an older sidecar is running.
    """

    def __init__(
        self,
        follower: LogFollower,
        copies: LiveCopies,
        sealer: Sealer,
        locks: ContainerLocks,
        layout: Layout,
        claims: Claims,
        releases: Releases,
    ) -> None:
        self._follower, self._copies, self._sealer, self._locks = follower, copies, sealer, locks
        self._layout, self._claims, self._releases = layout, claims, releases
        self._records, self._options, self._events = copies.records, copies.options, copies.events
        self._known: dict[str, int] = {}
        self._known_first = 0

    def new_pass(self) -> None:
        """Begin a pass."""
        self._known.clear()
        self._known_first = self._records.loaded

    def entered(self, container: str) -> None:
        """Note that the scan of a container, whose lock is held, begins. It judges only logs that are known by now."""
        self._known[container] = self._records.loaded

    def end(self, skip: Callable[[str], bool]) -> None:
        """Give their final names to the logs that the pass did not see and that have ended.

        Args:
            skip: whether nothing is known of a container: it was not read, or another sidecar works on it.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        self._events.still_failed(len(self._records.damaged))
        self._events.no_room(sum(log.short for log in self._records.logs.values()))
        self._sealer.finish_all()
        for log in list(self._records.logs.values()):
            unit = log.state.unit
            if log.seen or skip(unit):
                continue
            if self._layout.origin(log.state.source) is None:
                self._leave_to_others(log)
                continue
            with self._locks.holding(unit) as mine:
                if mine:
                    self._end(log, self._known.get(unit, self._known_first))

    def _leave_to_others(self, log: FollowedLog) -> None:
        """Report a log that these settings do not show, and that no other sidecar takes care of."""
        log.miss()
        if self._is_unwatched(log):
            detail = (
                "it was followed by other settings, and no running sidecar sees it, so its live copy is not finished: "
                "run a sidecar once with the --kinds and --pattern that show it"
            )
            self._events.unfollowed(log.state.source, detail)

    def _end(self, log: FollowedLog, known: int) -> None:
        if log.known_since <= known:
            log.miss()
        current = self._follower.advance(log)
        if current is None or current.known_since > known or not self._has_ended(current):
            return
        if current.fd < 0 and self._releases.has_older():
            return  # that sidecar may have the log open, and cannot show it
        # Once more: its writer may have written between the last copy and the moment it closed the log.
        current = self._follower.advance(current)
        if current is None or current.known_since > known or not self._copies.is_whole(current):
            return
        # A claim of it that a dead mover left is the log itself: that is moved.
        if self._claims.holds(log.id):
            return
        with self._copies.guarded(current.state.source, current):
            if self._sealer.seal(current, ended=True):
                self._copies.drop(current.id)

    def _has_ended(self, log: FollowedLog) -> bool:
        """Return whether a log that the scan did not see has ended, so that its live copy is all there is.

        One whole scan that does not see the log is not enough: a rename during the scan hides a log from it.
        """
        if not self._copies.is_deleted(log):
            if not self._is_missed(log):
                return False
            log.in_sight = False
            if self._copies.open_live(log, create=False) and is_marked_by_others(log):
                log.missed = 0  # another sidecar scans the place where it is, or reads what this one cannot
                return False
        if log.fd < 0:
            return True
        answer = lease.query(log.fd)
        if answer is lease.Lease.UNAVAILABLE:
            return time.monotonic() - log.grew_at >= self._options.seal_after
        return answer is lease.Lease.HELD

    def _is_unwatched(self, log: FollowedLog) -> bool:
        """Return whether a log was missed for some scans, and no process sees it or has it open."""
        with contextlib.suppress(OSError):
            if log.fd < 0 and log.missed >= _SCANS and time.monotonic() - log.missed_at >= self._options.quiet:
                return self._copies.open_live(log, create=False) and not is_watched(log.live)
        return False

    def _is_missed(self, log: FollowedLog) -> bool:
        if log.fd < 0:
            return log.missed >= _SCANS_NEVER_SEEN
        return log.missed >= _SCANS and time.monotonic() - log.missed_at >= self._options.quiet


def skips(unread: Collection[str], there: Collection[str], entered: Collection[str]) -> Callable[[str], bool]:
    """Return a function that decides of which containers a pass knows nothing.

    Args:
        unread: those that could not be read whole.
        there: those that are there.
        entered: those that this sidecar had.
    """
    return lambda unit: unit in unread or (unit in there and unit not in entered)
