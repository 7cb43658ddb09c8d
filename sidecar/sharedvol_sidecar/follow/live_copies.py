"""Logs that stay open: copied into the destination as they grow, byte for byte.

A log is followed into ``<name>~<identity>.live`` next to its future final name. The size of that live copy is the
checkpoint. It is stored nowhere else, so nothing can disagree with it after a kill. The log's record
(`follow_records`) says where the copy is and where the log comes from.

A log is known by its inode and time of birth. So it may be renamed while it is followed, and a new file
under its old name is another log. It ends in one of four ways:

- No process has it open for writing: it is moved like every finished file (`mover`), and the live copy is removed
  before the claim is. While there is a claim, the sidecar that recovers it removes the live copy too.
- It was cut (copytruncate, or any change of what was copied already): the live copy gets the final name, and
  the log continues in a new one, its next generation. The bytes before the checkpoint are compared at every
  step, so a log that was cut and has grown beyond the checkpoint since is noticed too.
- It was deleted: what its writer still writes is read through our descriptor. Then the live copy gets the name.
- It was moved to a place that no sidecar scans: after some scans that did not see it, once no process writes it and
  its copy is whole, the live copy gets the name.

A live copy is removed only after it has its final name. Before it gets that name a note says so (`follow_seals`): from
then on no sidecar writes the copy, and a copy that is missing is not made again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sharedvol import remove_stale_temporaries
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.template import day_of
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.copier import LogCopier
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.guard import FollowGuard
from sharedvol_sidecar.follow.live_names import LiveNames, claim_path, name_of
from sharedvol_sidecar.follow.marks import set_marks
from sharedvol_sidecar.follow.open_logs import OpenLogs
from sharedvol_sidecar.follow.seals import Seals
from sharedvol_sidecar.follow.store import FollowedLog, FollowState, FollowStore
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.holes import data_bytes
from sharedvol_sidecar.fs.inode import identity
from sharedvol_sidecar.fs.private import open_private
from sharedvol_sidecar.monitor.liveness import Liveness
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.item import Item, staging_name


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """The settings of followed logs.

    Attributes:
        seal_after: where no lease can be had, seconds without a change after which a log that is deleted or moved
            has ended.
        quiet: seconds for which a log that still exists is not seen, at least, before it has ended.
        min_free: bytes that are to stay free in the destination.
        most: logs that are followed at once.
    """

    seal_after: float
    quiet: float
    min_free: int
    most: int


class LiveCopies:
    """The logs that are followed into one destination. Every call needs the lock on the log's container.

    Args:
        destination: where they go.
        spool_id: tells this spool from others with the same destination.
        names: the names of the copies.
        ended: remembers logs that were sealed and still exist.
        events: counts and reports what happens to the logs.
        liveness: receives a sign of life for each part of a log that is copied.
        options: the settings.
    """

    def __init__(
        self,
        destination: Destination,
        spool_id: str,
        names: LiveNames,
        ended: EndedLogs,
        events: Events,
        liveness: Liveness,
        options: FollowOptions,
    ) -> None:
        self._destination, self._spool_id, self.names, self._ended = destination, spool_id, names, ended
        self.events = events
        self.options = options
        self._copier = LogCopier(destination, liveness, options.min_free)
        self.guarded = FollowGuard(destination, events).guarded
        directory = open_private(destination.root)
        for name in ("follow", spool_id):
            directory = directory.make(name, 0o700)[0]
        remove_stale_temporaries(f"/proc/self/fd/{directory.fd}", allow_network=True)  # of sidecars that were killed
        self.records, self.seals = FollowStore(directory, events), Seals(directory)

    def follow(self, candidate: Candidate, fd: int, info: os.stat_result) -> FollowedLog | None:
        """Begin or continue to follow a log that is not finished: `advance` it from now on.

        Args:
            candidate: the log.
            fd: open for reading; stays the caller's.
            info: its status.

        Returns:
            None if it cannot be followed now: it is not where it was found any more, or its record is damaged.

        Raises:
            OSError: the destination fails, or is full.
        """
        id = identity(fd, info.st_ino)
        log = self.records.logs.get(id)
        log = self.records.current(log) if log is not None else None
        if log is None:
            log = self._begin(id, candidate, info)
        if log is None:
            return None
        if log.fd < 0:
            # Not dup(2): a lease that is taken on the caller's description would last as long as this descriptor.
            log.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        log.see()
        return log

    def see(self, fd: int, inode: int) -> str:
        """Note that the scan found a file with a followed log's inode: its id if it is that log, else empty."""
        id = identity(fd, inode)
        log = self.records.logs.get(id)
        if log is None:
            return ""
        log.see()
        with contextlib.suppress(OSError):  # without the mark the log is as safe as on a file system without locks
            self.open_live(log, create=False)
        return id

    def which(self, fd: int, inode: int) -> str:
        """Return the id of a file that is followed, else empty. Most files are told by the inode alone."""
        return self.see(fd, inode) if inode in self.records.inodes else ""

    def is_new(self, item: Item) -> bool:
        """Return whether a file is followed that was not when it was admitted: another sidecar has begun to.

        Call it after the file was claimed. From then on no sidecar begins to follow it.
        """
        self.records.refresh()
        return not item.followed and bool(self.which(item.fd, item.info.st_ino))

    def advance(self, log: FollowedLog) -> bool:
        """Copy what a log has grown by. Return False if its live copy is to be sealed first: it was cut.

        Args:
            log: as `FollowStore.current` gave it.

        Raises:
            OSError: the destination fails, or is full.
        """
        if log.fd < 0 or not self.open_live(log):
            return True
        have = os.fstat(log.live).st_size
        log.size = have
        size = os.fstat(log.fd).st_size
        if size < have or not self._copier.agrees(log, have):
            return False
        if size == have:
            return True
        sent = self._copier.copy(log, have, size)
        if not self._copier.agrees(log, have):  # it was cut while we copied: the bytes are of its next generation
            os.ftruncate(log.live, have)
            return False
        log.size = have + sent
        log.grew_at = time.monotonic()
        self.events.followed_bytes(data_bytes(log.fd, have + sent, have))
        return True

    def was_cut(self, id: str, fd: int) -> FollowedLog | None:
        """Before a followed log is moved: itself, if it no longer holds what was copied.

        Args:
            id: the log's.
            fd: the log, open for reading.
        """
        log = self.records.logs.get(id)
        log = self.records.current(log) if log is not None else None
        if log is None or not self.open_live(log, create=False):
            return None
        have = os.fstat(log.live).st_size
        return log if os.fstat(fd).st_size < have or not self._copier.agrees(log, have, fd) else None

    def has_copy(self, log: FollowedLog) -> bool:
        """Return whether the live copy is there; none is made.

        Raises:
            OSError: the destination fails.
        """
        return self.open_live(log, create=False)

    def has_changed(self, log: FollowedLog) -> bool:
        """Return whether a log that this process can read has another length than its live copy, which is open."""
        if log.fd < 0:
            return False
        log.size = os.fstat(log.live).st_size
        return os.fstat(log.fd).st_size != log.size

    def next_generation(self, log: FollowedLog) -> FollowedLog | None:
        """Continue a log, whose live copy has its final name, in a new copy."""
        log.close_live()
        generation = self.seals.free(log.id, log.state.generation + 1)
        state = replace(log.state, generation=generation, live=self.names.new_path(log.id, log.state, generation))
        again = self.records.replace(log, state)
        if again is None:
            return None
        detail = "it was cut or changed: what it had held is kept, and it is followed anew"
        self.events.truncated(state.source, detail)
        return again

    def leave_open(self, logs: OpenLogs) -> None:
        """Leave the logs open for a later `LiveCopies`, first those that only a descriptor reaches."""
        found = (log for log in self.records.logs.values() if log.fd >= 0)
        for log in sorted(found, key=lambda log: not log.is_hidden)[: self.options.most]:
            logs.take(log)

    def resume(self, logs: OpenLogs) -> None:
        """Continue with the logs that another `LiveCopies` left open, and close those that have ended since."""
        for log in self.records.logs.values():
            with logs.give(log), contextlib.suppress(OSError):  # the pass reports a destination that fails
                self.open_live(log, create=False)
        logs.close()

    def is_deleted(self, log: FollowedLog) -> bool:
        """Return whether the log has no name any more, as far as this process can tell."""
        return log.fd >= 0 and not os.fstat(log.fd).st_nlink

    def is_whole(self, log: FollowedLog) -> bool:
        """Return whether the live copy holds all that the log holds, as far as this process can read the log."""
        return log.fd < 0 or os.fstat(log.fd).st_size == log.size

    def rehome(self, log: FollowedLog, path: str) -> FollowedLog | None:
        """Note that a log was found in another unit, which its record names from now on. Call it with both locks."""
        return self.records.replace(log, replace(log.state, source=path))

    def drop(self, id: str) -> None:
        """Remove the live copy, then the record, of a log that has its final name.

        Raises:
            OSError: the destination fails; the claim is to stay then.
        """
        log = self.records.logs.get(id)
        log = self.records.current(log) if log is not None else None
        if log is None:
            return
        place, name = self.names.locate(log.state.live)
        if place is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place.fd)
        self.records.remove(id)
        self.end_seal(log)

    def end_seal(self, log: FollowedLog) -> None:
        """Remove what is left of the sealing of a copy that has its final name and that no record names any more."""
        self.forget_copy(log)
        self.seals.remove(log)

    def forget_copy(self, log: FollowedLog) -> None:
        """Remove the name of a compressed copy that a mover which was killed may have left."""
        staging = self.staging()  # a directory without a reference is closed
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staging_name(claim_path(log)), dir_fd=staging.fd)

    def staging(self) -> Directory:
        """Open the directory of the compressed copies of live copies."""
        return self._destination.staging(self._spool_id, "follow")

    def unfollow(self, item: Item) -> None:
        """Remove the live copy of a log before its claim goes, or remember a log that may come back."""
        if item.followed:
            self.drop(item.followed)
        if item.ended:
            self._ended.remember(item.ended, item.target, item.encoding)

    def growing(self) -> Iterator[FollowedLog]:
        """The logs that have changed since they were copied, told by their size alone."""
        for log in list(self.records.logs.values()):
            if log.fd >= 0 and os.fstat(log.fd).st_size != log.size:
                yield log

    def _begin(self, id: str, candidate: Candidate, info: os.stat_result) -> FollowedLog | None:
        origin = candidate.origin
        day = day_of(origin, info.st_mtime_ns)
        log_day = origin.day.toordinal() if origin.day else None
        generation = self.seals.free(id, 0)
        state = FollowState(candidate.path, origin.kind, origin.container, origin.below, log_day, day, "", generation)
        state = replace(state, live=self.names.new_path(id, state, generation))
        log = self.records.create(id, state)
        if log is None or log.state != state:
            return None  # a damaged record, or that of a sidecar that has found the log in another unit
        # A mover that does not have the unit's lock first claims the log and then looks for a record. Here the record
        # comes first, and the look at the log's place second: so one of the two sees the other.
        if candidate.directory.inode(candidate.name) != (info.st_dev, info.st_ino):
            self.records.remove(id)
            return None
        self.events.followed(candidate.path, state.live)
        return log

    def open_live(self, log: FollowedLog, create: bool = True) -> bool:
        """Open the live copy, which is made where it is missing unless ``create`` is false. Return whether it is open.

        Raises:
            OSError: the destination fails.
        """
        if log.live >= 0:
            info = os.fstat(log.live)
            # Its own name counts: another sidecar may have removed that, and the final name is a link to the same file.
            if log.directory is not None and log.directory.inode(name_of(log)) == (info.st_dev, info.st_ino):
                set_marks(log)
                return True
            log.close_live()
        path = log.state.live
        directory, name = self.names.locate(path)
        if directory is not None:
            with contextlib.suppress(FileNotFoundError):
                log.live = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
                log.directory = directory
                set_marks(log)
                return True
        if not create:
            return False
        self._destination.begin()
        directory, name = self._destination.locate(path)
        above = self._destination.actual(path.rpartition("/")[0])
        if above != path.rpartition("/")[0]:  # a file has got the name of a directory on the way
            self.records.replace(log, replace(log.state, live=f"{above}/{name}"))
            return False  # the next step has it
        # A copy of an earlier generation of that number, left by a kill: it must not be taken for ours.
        self.forget_copy(log)
        log.live = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory.fd
        )
        log.directory = directory
        set_marks(log)
        self._destination.ownership.apply(log.live, os.fstat(log.fd))
        return True
