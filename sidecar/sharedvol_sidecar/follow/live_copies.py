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
from collections.abc import Callable, Iterator
from dataclasses import replace

from sharedvol import remove_stale_temporaries
from sharedvol.paths import MAX_NAME_BYTES
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.template import Template, day_of
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.marks import is_marked_by_others, is_watched, set_marks
from sharedvol_sidecar.follow.open_logs import OpenLogs
from sharedvol_sidecar.follow.seals import Seals
from sharedvol_sidecar.follow.store import FollowedLog, FollowState, FollowStore
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.fs.content import encoding_of
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.holes import data_bytes, next_data, next_hole
from sharedvol_sidecar.fs.inode import identity
from sharedvol_sidecar.fs.private import open_private
from sharedvol_sidecar.monitor.liveness import Liveness, Unwatched
from sharedvol_sidecar.spool.layout import LIVE
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.item import Item, staging_name

_CHECKED = 4096  # bytes before the checkpoint that are compared: a log's last lines, which hold times
_AT_A_TIME = 8 * 1024 * 1024
_SCANS = 3  # in a row that do not see a log: a rename during a scan hides a log from it
_SCANS_NEVER_SEEN = 2  # the same of a log that this process has never seen


def claim_path(log: FollowedLog) -> str:
    """What stands for the path of a claim where a live file is moved to its final name."""
    return f"follow/{log.id}.{log.state.generation}"


class LiveCopies:
    """The logs that are followed into one destination. Every call needs the lock on the log's unit.

    Args:
        destination: where they go.
        spool_id: tells this spool from others with the same destination.
        template: the final names.
        dress: gives a new file in the destination its mode and owner, those of the source or configured ones.
        room: whether there is room for more; asked before a log is copied further.
        seal_after: where no lease can be had, seconds without a change after which a log that is deleted or moved
            has ended.
        quiet: seconds for which a log that still exists is not seen, at least, before it has ended.
        events: counts and reports what happens to the logs.
        liveness: receives a sign of life for each part of a log that is copied.
    """

    def __init__(
        self,
        destination: Destination,
        spool_id: str,
        template: Template,
        dress: Callable[[int, os.stat_result], None],
        room: Callable[[], bool],
        seal_after: float,
        quiet: float,
        events: Events,
        liveness: Liveness | None = None,
    ) -> None:
        self._liveness = liveness or Unwatched()
        self._destination, self._template = destination, template
        self._dress, self._room, self._events = dress, room, events
        self._seal_after, self._quiet = seal_after, quiet
        self._spool_id = spool_id
        directory = open_private(destination.root)
        for name in ("follow", spool_id):
            directory = directory.make(name, 0o700)[0]
        remove_stale_temporaries(f"/proc/self/fd/{directory.fd}", allow_network=True)  # of those that were killed
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
            self._open_live(log, create=False)
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
        if log.fd < 0 or not self._open_live(log):
            return True
        have = os.fstat(log.live).st_size
        log.size = have
        size = os.fstat(log.fd).st_size
        if size < have or not self._agrees(log, have):
            return False
        if size == have:
            return True
        sent = self._copy(log, have, size)
        if not self._agrees(log, have):  # it was cut while we copied: the bytes are of its next generation
            os.ftruncate(log.live, have)
            return False
        log.size = have + sent
        log.grew_at = time.monotonic()
        self._events.followed_bytes(data_bytes(log.fd, have + sent, have))
        return True

    def was_cut(self, id: str, fd: int) -> FollowedLog | None:
        """Before a followed log is moved: itself, if it no longer holds what was copied.

        Args:
            id: the log's.
            fd: the log, open for reading.
        """
        log = self.records.logs.get(id)
        log = self.records.current(log) if log is not None else None
        if log is None or not self._open_live(log, create=False):
            return None
        have = os.fstat(log.live).st_size
        return log if os.fstat(fd).st_size < have or not self._agrees(log, have, fd) else None

    def has_copy(self, log: FollowedLog) -> bool:
        """Return whether the live copy is there; none is made.

        Raises:
            OSError: the destination fails.
        """
        return self._open_live(log, create=False)

    def has_changed(self, log: FollowedLog) -> bool:
        """Return whether a log has another length than its live copy, which must be there.

        False too where this process cannot read the log.
        """
        if log.fd < 0:
            return False
        log.size = os.fstat(log.live).st_size
        return os.fstat(log.fd).st_size != log.size

    def sealing(self, log: FollowedLog) -> Item | None:
        """The live file as an item that can be moved to its final name; None where nothing was copied.

        Raises:
            OSError: the destination fails.
        """
        if not self._open_live(log, create=False):
            return None
        assert log.directory is not None
        name = _name_of(log)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=log.directory.fd)
        candidate = Candidate(log.directory, name, log.state.source, log.state.origin, claimed=True)
        item = Item(candidate, fd, os.fstat(fd), leased=False)
        item.claim = log.directory
        item.claim_path = claim_path(log)
        item.day = log.state.day
        item.in_destination = True
        item.final = self._final(log)
        return item

    def settle_encoding(self, item: Item) -> Directory | None:
        """Keep to what a sidecar that died had begun with other settings: by it, its final name is found.

        Args:
            item: a live copy, with the encoding that this sidecar's settings give it.

        Returns:
            The place of its copy that has, or gets, the final name; None without such a copy.
        """
        staging = self._destination.staging(self._spool_id, "follow")
        try:
            fd = os.open(item.staging_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
        except FileNotFoundError:
            if item.info.st_nlink > 1:
                item.encoding = ""  # it has its final name, as it is
            return None
        try:
            item.encoding = encoding_of(fd) or item.encoding
        finally:
            os.close(fd)
        return staging

    def reopen(self, item: Item, withdraw: Callable[[Item], None]) -> None:
        """Take back the final name that a live copy may have, durably: its log has changed, and is followed again.

        Args:
            item: the live copy, with the encoding that this sidecar's settings give it.
            withdraw: takes back a final name, and its row in the catalog.

        Raises:
            OSError: the destination fails; the copy must not be written then.
        """
        item.staged = self.settle_encoding(item)
        self._destination.begin()
        withdraw(item)
        for error in self._destination.sync().values():
            raise error

    def next_generation(self, log: FollowedLog) -> FollowedLog | None:
        """Continue a log, whose live copy has its final name, in a new copy."""
        log.close_live()
        generation = self.seals.free(log.id, log.state.generation + 1)
        state = replace(log.state, generation=generation, live=self._new_live_path(log.id, log.state, generation))
        again = self.records.replace(log, state)
        if again is None:
            return None
        detail = "it was cut or changed: what it had held is kept, and it is followed anew"
        self._events.truncated(state.source, detail)
        return again

    def ended(self, log: FollowedLog) -> bool:
        """Return whether a log that the scan did not see has ended, so that its live copy is all there is.

        Call it after each whole scan of the log's unit that did not see the log. One is not enough: a rename
        during the scan hides a log from it.
        """
        if not self.is_deleted(log):
            if not self._is_missed(log):
                return False
            log.in_sight = False
            if self._open_live(log, create=False) and is_marked_by_others(log):
                log.missed = 0  # another sidecar scans the place where it is, or reads what this one cannot
                return False
        if log.fd < 0:
            return True
        answer = lease.query(log.fd)
        if answer is lease.Lease.UNAVAILABLE:
            return time.monotonic() - log.grew_at >= self._seal_after
        return answer is lease.Lease.HELD

    def is_unwatched(self, log: FollowedLog) -> bool:
        """Return whether a log was missed for some scans, and no process sees it or has it open."""
        with contextlib.suppress(OSError):
            if log.fd < 0 and log.missed >= _SCANS and time.monotonic() - log.missed_at >= self._quiet:
                return self._open_live(log, create=False) and not is_watched(log.live)
        return False

    def leave_open(self, logs: OpenLogs, most: int) -> None:
        """Leave the logs open for a later `LiveCopies`, first those that only a descriptor reaches.

        Args:
            logs: take the descriptors over.
            most: logs that are left open at most.
        """
        found = (log for log in self.records.logs.values() if log.fd >= 0)
        for log in sorted(found, key=lambda log: not log.is_hidden)[:most]:
            logs.take(log)

    def resume(self, logs: OpenLogs) -> None:
        """Continue with the logs that another `LiveCopies` left open, and close those that have ended since."""
        for log in self.records.logs.values():
            with logs.give(log), contextlib.suppress(OSError):  # the pass reports a destination that fails
                self._open_live(log, create=False)
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

    def _is_missed(self, log: FollowedLog) -> bool:
        if log.fd < 0:
            return log.missed >= _SCANS_NEVER_SEEN
        return log.missed >= _SCANS and time.monotonic() - log.missed_at >= self._quiet

    def drop(self, id: str) -> None:
        """Remove the live copy, then the record, of a log that has its final name.

        Raises:
            OSError: the destination fails; the claim is to stay then.
        """
        log = self.records.logs.get(id)
        log = self.records.current(log) if log is not None else None
        if log is None:
            return
        place, name = self._locate(log.state.live)
        if place is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place.fd)
        self.records.remove(id)
        self.end_seal(log)

    def end_seal(self, log: FollowedLog) -> None:
        """Remove what is left of the sealing of a copy that has its final name and that no record names any more."""
        self._forget_copy(log)
        self.seals.remove(log)

    def failure(self, error: OSError) -> OSError | None:
        """Return what keeps the destination from taking any file, or None if an error is of one log alone."""
        if error.errno in OUT_OF_DESCRIPTORS:
            return None
        try:
            self._destination.blame(error)
        except OSError as failure:
            return failure
        return None

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
        state = replace(state, live=self._new_live_path(id, state, generation))
        log = self.records.create(id, state)
        if log is None or log.state != state:
            return None  # a damaged record, or that of a sidecar that has found the log in another unit
        # A mover that does not have the unit's lock first claims the log and then looks for a record. Here the record
        # comes first, and the look at the log's place second: so one of the two sees the other.
        if candidate.directory.inode(candidate.name) != (info.st_dev, info.st_ino):
            self.records.remove(id)
            return None
        self._events.followed(candidate.path, state.live)
        return log

    def _new_live_path(self, id: str, state: FollowState, generation: int) -> str:
        """The path of a live copy that is about to be made. Its directory may have another name than the template's."""
        above = self._template.target(state.origin, state.day).rpartition("/")[0]
        self._destination.begin()
        actual = self._destination.actual(above)
        name = self._live_name(id, state, generation)
        return f"{actual}/{name}" if actual else name

    def _live_name(self, id: str, state: FollowState, generation: int) -> str:
        name = self._template.target(state.origin, state.day).rpartition("/")[2]
        tail = os.fsencode(f"~{id}{f'.{generation}' if generation else ''}{LIVE}")
        return os.fsdecode(os.fsencode(name)[: MAX_NAME_BYTES - len(tail)] + tail)

    def _final(self, log: FollowedLog) -> str:
        """The final name of a live copy, in its own directory.

        So a sidecar with another template finds the name that one which died had given it, by inode.
        """
        above, slash, live = log.state.live.rpartition("/")
        if live == self._live_name(log.id, log.state, log.state.generation):
            name = self._template.target(log.state.origin, log.state.day).rpartition("/")[2]
        else:
            name = live.rpartition(f"~{log.id}")[0]
        return above + slash + name

    def _locate(self, path: str) -> tuple[Directory | None, str]:
        *parents, name = path.split("/")
        directory = self._destination.root
        try:
            for parent in parents:
                directory = directory.open(parent)
        except (FileNotFoundError, NotADirectoryError):
            return None, name
        return directory, name

    def _open_live(self, log: FollowedLog, create: bool = True) -> bool:
        """Open the live file, which is made where it is missing unless ``create`` is false."""
        if log.live >= 0:
            info = os.fstat(log.live)
            # Its own name counts: another sidecar may have removed that, and the final name is a link to the same file.
            if log.directory is not None and log.directory.inode(_name_of(log)) == (info.st_dev, info.st_ino):
                set_marks(log)
                return True
            log.close_live()
        path = log.state.live
        directory, name = self._locate(path)
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
        self._forget_copy(log)
        log.live = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory.fd
        )
        log.directory = directory
        set_marks(log)
        self._dress(log.live, os.fstat(log.fd))
        return True

    def _forget_copy(self, log: FollowedLog) -> None:
        """A mover that was killed may have left the name of the live file's compressed copy."""
        staging = self._destination.staging(self._spool_id, "follow")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staging_name(claim_path(log)), dir_fd=staging.fd)

    def _agrees(self, log: FollowedLog, have: int, fd: int = -1) -> bool:
        """Whether the log still holds, before the checkpoint, what was copied."""
        length = min(_CHECKED, have)
        source = log.fd if fd < 0 else fd
        return os.pread(log.live, length, have - length) == os.pread(source, length, have - length)

    def _copy(self, log: FollowedLog, have: int, size: int) -> int:
        offset = have
        while offset < size:
            data = next_data(log.fd, offset, size)
            if data > offset:  # a hole, which takes no space: one call can make it as long as a disk
                os.ftruncate(log.live, data)
                offset = data
                continue
            if not self._room():
                log.short = True
                break
            end = min(size, offset + _AT_A_TIME, next_hole(log.fd, offset, size))
            os.lseek(log.live, offset, os.SEEK_SET)
            self._liveness.beat()
            sent = os.sendfile(log.live, log.fd, offset, end - offset)
            if not sent:
                break
            offset += sent
        return offset - have


def _name_of(log: FollowedLog) -> str:
    """The live copy's name in its directory."""
    return log.state.live.rpartition("/")[2]
