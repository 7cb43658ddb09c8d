"""One spool, one destination: scan, admit, move, in batches; and help with a backlog."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.collect.helper import Helper
from sharedvol_sidecar.collect.naming import Naming, NamingStore
from sharedvol_sidecar.collect.serving import Serving
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.ownership import Ownership
from sharedvol_sidecar.errors import FULL, SpoolError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.follower import LogFollower, skips
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.mounts import shares_file_system
from sharedvol_sidecar.fs.private import directory_id
from sharedvol_sidecar.fs.spares import is_spare
from sharedvol_sidecar.monitor.deduplicator import Saw
from sharedvol_sidecar.monitor.liveness import Liveness, Unwatched
from sharedvol_sidecar.monitor.replica_watch import ReplicaWatch
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.orphans import Orphans
from sharedvol_sidecar.spool.quiet_time import QuietTime
from sharedvol_sidecar.spool.renames import RenameLog
from sharedvol_sidecar.spool.scanner import Candidate, Scanner
from sharedvol_sidecar.spool.visits import BYTES, SCANNED, Visits
from sharedvol_sidecar.transfer.admission import Admission, Logs
from sharedvol_sidecar.transfer.batch import MAX_BATCH_BYTES, MAX_FOLLOWED, FileBatch, raise_descriptors
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claims import Claims, day_of_batch
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.mover import Mover
from sharedvol_sidecar.transfer.rate import Rate
from sharedvol_sidecar.transfer.staging import purge

HELP_AFTER = 2_000
"""Files found in one pass after which a second process helps."""

_TICK = 1.0  # seconds between two looks at the logs that are followed, while other files are moved


class Collector:
    """Does the job, a pass at a time.

    Args:
        job: what to do.
        events: counts and reports what happens.
        visit: called with each directory that is scanned.
        shard: ``(k, n)``: the k-th of n parts of the files. Not the first: a helper of the one that is.
        wait: seconds to wait for a container that another sidecar is working on.
        pause: waits so many seconds, or less if it is time to stop.
        placed: knows from events which files were renamed into place.
        liveness: receives a sign of life for each file, and for each chunk of a long one.

    Raises:
        ConfigError: the template is wrong.
        OSError: a directory is missing or cannot be written.
    """

    def __init__(
        self,
        job: CollectorConfig,
        events: Events,
        visit: Callable[[Directory], None] | None = None,
        shard: tuple[int, int] = (0, 1),
        wait: float = 0.0,
        pause: Callable[[float], None] = time.sleep,
        placed: RenameLog | None = None,
        liveness: Liveness | None = None,
    ) -> None:
        self._liveness = liveness or Unwatched()
        self._job, self._pause, self._placed = job, pause, placed or RenameLog()
        self._events = events
        self._helping = shard[0] > 0
        self._descriptors = raise_descriptors()
        # No part refers to the collector: it would close only when the garbage collector runs, which is rare.
        with contextlib.ExitStack() as parts:
            spool = parts.enter_context(open_root(Path(job.spool)))
            root = parts.enter_context(open_root(Path(job.collected)))
            self._namings = NamingStore(spool, Naming.of(job))
            parts.callback(self._namings.close)
            with _needing_room(spool):
                self.claims = Claims(spool, self._namings.own_key)
                parts.callback(self.claims.close)
                self._spool_id = directory_id(spool)
            serving = Serving(
                self.claims.movers, self.claims.slot, job.spool, functools.partial(directory_id, root), job.collected
            )
            parts.callback(serving.close)
            claims = self.claims
            self._has_older = lambda: serving.has_older(claims.other_slots())
            mark = f"{self._spool_id}-{self.claims.slot}"
            ownership = Ownership(job.uid, job.gid, job.file_mode, job.directory_mode)
            self._destination = Destination(root, ownership, mark)
            parts.callback(self._destination.close)
            self.linked = shares_file_system(spool, root, mark)
            self.orphans = Orphans(spool, job.spool, self._namings.kinds, events)
            self.replicas = ReplicaWatch(spool)
            open_catalog = functools.partial(Catalog.open, job.catalog, root)
            self.register = CatalogWriter(open_catalog if job.catalog is not None else None, events)
            parts.callback(self.register.close)
            self._assemble(spool, events, visit, shard, wait, parts)
            self._parts = parts.pop_all()
        self._rate = Rate(job.rate)
        self._rate.share(2 if self._helping else 1)
        self._helper: Helper | None = None

    def _assemble(
        self,
        spool: Directory,
        events: Events,
        visit: Callable[[Directory], None] | None,
        shard: tuple[int, int],
        wait: float,
        parts: contextlib.ExitStack,
    ) -> None:
        job, destination = self._job, self._destination
        template, layout = self._namings.own.names, self._namings.own.layout
        self._spool = spool
        self._quiet = QuietTime(job.quiet)
        # Opened again: two descriptors of one opening share the position in the list of its entries.
        again = parts.enter_context(spool.open("."))
        self._visits = Visits(Scanner(again, layout, Events()))
        publisher = Linker(
            self._destination,
            template,
            functools.partial(destination.staging, self._spool_id),
            self.linked,
            job.min_free,
            self.register.remove,
            self._liveness,
        )
        followed = LiveCopies(
            self._destination,
            self._spool_id,
            template,
            self._destination.ownership.apply,
            lambda: not destination.is_short(job.min_free),
            job.seal_after,
            job.quiet,
            events,
            self._liveness,
        )
        records = followed.records
        parts.callback(records.close)
        self._scanner = Scanner(spool, layout, events, visit, shard, job.follow, lambda inode: inode in records.inodes)
        with _needing_room(spool):
            self._units = ContainerLocks(spool, wait, records.refresh)
        parts.callback(self._units.close)
        self._ended = EndedLogs(destination.root, self._spool_id, self.claims, events, self._liveness)
        parts.callback(self._ended.close)
        most = max(1, min(MAX_FOLLOWED, self._descriptors // 8))  # files that move need descriptors, too
        logs = Logs(() if self._helping else job.follow, job.seal_after, job.compress)
        self._mover = Mover(
            spool,
            destination,
            self.claims,
            publisher,
            self.register,
            self.linked,
            events,
            job.digests and job.catalog is not None,
            functools.partial(_unfollow, followed, self._ended),
            self._liveness,
            followed.is_new,
        )
        self.logs = LogFollower(
            followed,
            self._units,
            logs,
            self._mover.move,
            publisher.withdraw,
            self.claims.holds,
            lambda path: layout.origin(path) is not None,
            self._has_older,
            self._ended,
            job.collected,
            events,
            most,
        )
        placed, put_backs = self._placed, self.claims.put_backs

        def is_placed(directory: Directory, name: str, info: os.stat_result) -> bool:
            """Return whether a file's writer renamed it into place, and not a sidecar that put it back."""
            return placed(directory, name, info) and info.st_ino not in put_backs

        self.admission = Admission(
            spool,
            self._quiet,
            publisher.hide,
            events,
            logs,
            self.logs.grows,
            self.logs.which,
            is_placed,
            destination.ownership,
        )

    @property
    def due(self) -> float | None:
        """Seconds until the first of the files that the last pass left as settling may be finished."""
        return self.admission.due

    @property
    def short_of_spool(self) -> bool:
        """Whether the last pass left a file because the spool had no room for its claim."""
        return self._mover.without_room or self._units.without_room

    @property
    def short_of_descriptors(self) -> bool:
        """Whether the last pass left a file because too many were open."""
        return self._scanner.exhausted or self.admission.exhausted or self._mover.exhausted

    @property
    def root(self) -> Directory:
        """The destination's root."""
        return self._destination.root

    def prepare_catalog(self, progress: Callable[[], object] = lambda: None) -> None:
        """Make the catalog where it is missing: of a destination without files `ls` then shows none.

        Args:
            progress: called about once a second while this takes time; a true value ends the wait.
        """
        self.register.prepare(progress)

    @property
    def short_of_space(self) -> bool:
        """Whether less is free in the destination than is to stay free."""
        return self._destination.is_short(self._job.min_free)

    def run_pass(
        self, stop: Callable[[], bool] = lambda: False, after_batch: Callable[[PassCounts], None] = lambda counts: None
    ) -> PassCounts:
        """Collect what is finished now: first what dead movers had claimed, then what a scan finds.

        Args:
            stop: asked after each batch whether to end early.
            after_batch: called after each batch, and at the end, whatever happens, with the counts so far.

        Raises:
            DestinationError: the destination takes nothing now.
            SpoolError: the spool gives nothing now.
            OSError: the spool cannot be read.
        """
        counts = self._events.new_pass()
        waiting_for_rows = self._uncatalogued
        self._quiet.new_pass()
        self.admission.new_pass()
        self._mover.new_pass()
        self._units.new_pass()
        self.logs.new_pass()
        self._namings.keep()
        self.claims.key = self._namings.own_key
        self._entered: set[str] = set()
        self.saw = _nothing
        resting = self.register.resting
        whole = self._scanner.shard
        batch = self._new_batch()
        candidates = self._scanner.candidates(self._enter)
        looked = 0
        try:
            if not self._helping and not self.register.resting:
                self._recover()
            if self.register.resting:  # it did not read, or not all of, the claims that wait for their rows
                self._events.still_uncatalogued(waiting_for_rows)
            for candidate in candidates:
                self._liveness.beat()  # a scan that finds nothing to move may take minutes
                looked += 1
                self._admit(candidate, batch)
                if batch.full or (self.admission.exhausted and batch.items) or looked >= SCANNED:
                    self._count_found(len(batch.items))
                    moving, batch = batch, self._new_batch()
                    self._move(moving, after_batch, self._entering)
                    del moving  # or its directories stay open beside those of the next
                    if not self._helping:
                        self._visit_others(after_batch)
                    looked = 0
                    if stop():
                        return counts
            moving, batch = batch, self._new_batch()
            self._move(moving, after_batch, None)
            if not self._helping:
                unread = self._scanner.unread | self.admission.unopened
                self._check_room()
                skipped = skips(unread, self._scanner.units, self._entered)
                self.logs.end(skipped)
                self._remove_orphans()
                if self._helper is None and not resting:
                    self.saw = lambda directory: not skipped(directory)
        finally:
            candidates.close()
            self._visits.close()
            for item in batch.items:
                item.close()
            self._destination.begin()  # or the directories of the last batch stay open until there is another
            self._scanner.shard = whole
            self._found = 0
            self._end_help(stop)
            self._uncatalogued = counts.uncatalogued
            self._units.release()
            after_batch(counts)  # also of a pass that fails: what it did before is counted
        return counts

    def tick(self, after: Callable[[PassCounts], None] = lambda counts: None) -> PassCounts:
        """Follow the logs that have grown, without a scan.

        Args:
            after: called at the end, whatever happens, with the counts.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        counts = self._events.new_pass()
        try:
            self.logs.tick()
        finally:
            after(counts)
        self._pause_for(counts.followed)
        return counts

    def forget_dead(self, most: int) -> None:
        """Forget dead containers that left no directory, at most so many.

        Raises:
            SharedVolError: the register of replicas cannot be used.
        """
        if self._job.orphans:
            self.replicas.forget(self.orphans.volume, most)

    def close(self) -> None:
        """Release the mover's slot and every lock, and close everything. Does nothing the second time."""
        self._parts.close()

    saw: Saw
    """Whether the last pass has read all of a directory at the top of the spool, and could report its problems."""

    @property
    def is_whole(self) -> bool:
        """Whether the last pass has read all of the spool, so that its counts are those of the spool."""
        return self.saw("") and all(map(self.saw, self._scanner.units))

    _found = 0
    _uncatalogued = 0
    _entering: str | None = None

    def _end_help(self, stop: Callable[[], bool]) -> None:
        helper, self._helper = self._helper, None
        self._rate.share(1)
        moved = helper.end(stop) if helper is not None else None
        if moved is not None:
            self._events.helped(moved)

    def _enter(self, unit: str) -> bool:
        if self._helping:
            return True  # the claims keep it from moving what another sidecar moves
        if not self._units.take(unit):
            return False
        self._entering = unit
        self._entered.add(unit)
        self.logs.entered(unit)
        return True

    def _count_found(self, count: int) -> None:
        self._found += count
        if self._found >= HELP_AFTER and self._helper is None and self._job.workers > 1:
            with contextlib.suppress(OSError):  # too many processes or open files: it works alone
                self._helper = Helper(self._job)  # before the batch is moved: it takes a moment to start
                self._scanner.shard = (0, 2)
                self._rate.share(2)

    def _move(self, batch: FileBatch, after_batch: Callable[[PassCounts], None], keep: str | None) -> None:
        """Move a batch, and let go of the units that it was of but the one that is being scanned."""
        if batch.items:
            self._mover.move(batch.items)
            after_batch(self._events.counts)
            self.logs.tick(_TICK)  # a backlog may take minutes
        if self._helper is None:
            self._units.release(keep)
        self._pause_for(sum(item.work for item in batch.items if item.done))

    def _admit(self, candidate: Candidate, batch: FileBatch) -> None:
        """Add a file to a batch if it may move."""
        self.logs.see(candidate)
        item = self.admission.admit(candidate)
        if item is None:
            return
        batch.add(item)  # first, so that whatever happens it is closed
        # A helper has no locks, and so no say over a log that is followed.
        if self._ended.discard(item) or (item.followed and (self._helping or not self.logs.is_as_it_was(item))):
            batch.drop_last()

    def _visit_others(self, after_batch: Callable[[PassCounts], None]) -> None:
        """Move some files of the other containers, so that they do not wait for the backlog of this one.

        What is left there is not counted: the scan does that, once for each container.
        """
        batch = self._new_batch()
        with self._events.moved_only(), self.admission.uncounted(), contextlib.ExitStack() as locks:
            try:
                for entry in self._visits.containers(self._entering):
                    with contextlib.ExitStack() as lock:
                        mine = lock.enter_context(self._units.held(entry.name, wait=False))
                        if mine and self._admit_some(entry, batch):
                            locks.enter_context(lock.pop_all())  # until its files are moved
                    if batch.full or self.admission.exhausted:
                        break
                if batch.items:
                    self._mover.move(batch.items)
            finally:
                for item in batch.items:
                    item.close()
        if batch.items:
            after_batch(self._events.counts)
            self._pause_for(sum(item.work for item in batch.items if item.done))

    def _admit_some(self, entry: os.DirEntry[str], batch: FileBatch) -> bool:
        """Add the first files of one container to a batch. Return whether there was any."""
        before, work = len(batch.items), 0
        with contextlib.closing(self._visits.candidates(entry)) as candidates:
            for candidate in candidates:
                self._liveness.beat()
                count = len(batch.items)
                self._admit(candidate, batch)
                work += sum(item.work for item in batch.items[count:])
                if batch.full or work >= BYTES:
                    break
        return len(batch.items) > before

    def _check_room(self) -> None:
        """A pass that collects anything has made room: the next one has the rest.

        Raises:
            SpoolError: nothing could be claimed.
        """
        if not self.short_of_spool or self._events.counts.collected:
            return
        failure = self.claims.failure()
        if failure is not None:
            raise SpoolError(
                f"cannot move files within {self._spool.shown!r}: {describe(failure)}; make room there, "
                "100 KiB are enough; nothing was lost"
            ) from failure

    def _pause_for(self, count: int) -> None:
        wait = self._rate.spend(count)
        if wait > 0:
            self._pause(wait)

    def _recover(self) -> None:
        with contextlib.closing(self.claims.left_behind()) as left_behind:
            for slot, root in left_behind:
                self.logs.refresh()  # the mover that died may have begun to follow logs since this pass began
                if not self._recover_slot(slot, root):
                    return  # published files wait for their rows, and checking each again would change nothing

    def _recover_slot(self, slot: str, root: Directory) -> bool:
        """Finish what a mover of a slot had claimed. Return False if the catalog takes no rows now."""
        for name in os.listdir(root.fd):
            if is_spare(name):
                continue
            try:
                directory = root.open(name)
            except NotADirectoryError:
                continue  # nothing of ours
            batch = self._new_batch()
            for item in self._left_in(directory, f"{slot}/{name}"):
                batch.add(item)
                if batch.full:
                    self._mover.move(batch.items)
                    batch = self._new_batch()
            if batch.items:
                self._mover.move(batch.items)
            if self.register.resting:
                return False
        if self.claims.tidy(root):
            self._purge(slot)
        return True

    def _left_in(self, directory: Directory, path: str) -> Iterator[Item]:
        """The claims in a claim directory that can be finished, by the settings that made them."""
        day, naming = day_of_batch(path), self._namings.of_batch(path)
        for candidate in Scanner(self._spool, naming.layout, self._events).claimed(directory):
            item = self.admission.admit(candidate, f"{path}/{candidate.path}", day)
            if item is None:
                continue
            if naming is not self._namings.own:
                item.template, item.encoding = naming.names, naming.logs.encoding_of(item)
            if not self._ended.discard(item) and (
                not item.followed
                # Its live file is touched, for which a log has one sidecar at a time.
                or (self._units.take(candidate.path.partition("/")[0]) and self.logs.is_as_it_was(item))
            ):
                yield item
            else:
                item.close()

    def _remove_orphans(self) -> None:
        if not self._job.orphans:
            return
        for unit in sorted(self._entered - self._namings.kinds()):
            with self._units.held(unit) as mine:
                if mine:
                    self.orphans.remove_if_dead(unit)

    def _new_batch(self) -> FileBatch:
        most = min(MAX_BATCH_BYTES, self._rate.at_once)
        return FileBatch(self._descriptors - 3 * len(self.logs), self._job.template.count("/"), most)

    def _purge(self, slot: str) -> None:
        """A slot without claims needs none of its copies."""
        staging = self._destination.staging(self._spool_id, slot)
        purge(staging)


def _unfollow(followed: LiveCopies, ended: EndedLogs, item: Item) -> None:
    """Before a log or its live copy goes: remove the copy of the log, or remember what came of the copy."""
    if item.followed:
        followed.drop(item.followed)
    if item.ended:
        ended.remember(item.ended, item.target, item.encoding)


@contextlib.contextmanager
def _needing_room(spool: Directory) -> Iterator[None]:
    """Raise a SpoolError where a full spool does not take what a sidecar makes once."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SpoolError(
            f"cannot begin in {spool.shown!r}: {describe(error)}; make room there once, 100 KiB are enough: "
            "from then on the sidecar keeps what it needs"
        ) from error


def _nothing(directory: str) -> bool:
    return False


def tune_memory() -> None:
    """For a process that does nothing but collect: leave the garbage collector out of the way.

    Its cyclic search costs a tenth of the time of a move, and finds nothing: what belongs to a file goes
    with the last reference to it.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
