"""One spool, one destination: scan, admit, move, in batches; and help with a backlog."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable

from sharedvol.errors import describe
from sharedvol_sidecar.collect.helper import Helper
from sharedvol_sidecar.collect.recovery import Recovery
from sharedvol_sidecar.collect.wiring import CollectorOptions, build
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.errors import SpoolError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.endings import skips
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.monitor.deduplicator import Saw
from sharedvol_sidecar.monitor.replica_watch import ReplicaWatch
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.spool.visits import BYTES, SCANNED
from sharedvol_sidecar.transfer.batch import FileBatch

HELP_AFTER = 2_000
"""Files found in one pass after which a second process helps."""

_TICK = 1.0  # seconds between two checks of the followed logs, while other files are moved


class Collector:
    """Collects from one spool into one destination, a pass at a time.

    Args:
        job: the checked settings.
        events: counts and reports what happens.
        options: what differs between `run`, `once` and a helper.

    Attributes:
        parts: what it is made of.
        replicas: the replicas that joined the volume.
        saw: whether the last pass has read all of a directory at the top of the spool, and could report its problems.

    Raises:
        ConfigError: the template is wrong.
        SpoolError: the spool is too full to begin.
        OSError: a directory is missing or cannot be written.
    """

    def __init__(self, job: CollectorConfig, events: Events, options: CollectorOptions | None = None) -> None:
        self._job, self._events, self._options = job, events, options or CollectorOptions()
        self.parts = build(job, events, self._options)
        self.replicas = ReplicaWatch(self.parts.spool)
        self._recovery = Recovery(self.parts, events)
        self._helping = self._options.helping
        self.parts.rate.share(2 if self._helping else 1)
        self.saw: Saw = _nothing
        self._helper: Helper | None = None
        self._entered: set[str] = set()
        self._entering: str | None = None
        self._found = self._uncatalogued = 0

    @property
    def due(self) -> float | None:
        """Seconds until the first of the files that the last pass left as settling may be finished."""
        return self.parts.admission.due

    @property
    def short_of_spool(self) -> bool:
        """Whether the last pass left a file because the spool had no room for its claim."""
        return self.parts.mover.without_room or self.parts.locks.without_room

    @property
    def short_of_descriptors(self) -> bool:
        """Whether the last pass left a file because too many were open."""
        return self.parts.scanner.exhausted or self.parts.admission.exhausted or self.parts.mover.exhausted

    @property
    def root(self) -> Directory:
        """The destination's root."""
        return self.parts.destination.root

    def prepare_catalog(self, progress: Callable[[], object] = lambda: None) -> None:
        """Make the catalog where it is missing: of a destination without files `ls` then shows none.

        Args:
            progress: called about once a second while this takes time; a true value ends the wait.
        """
        self.parts.catalog.prepare(progress)

    @property
    def short_of_space(self) -> bool:
        """Whether less is free in the destination than is to stay free."""
        return self.parts.destination.is_short(self._job.min_free)

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
        self.parts.quiet.new_pass()
        self.parts.admission.new_pass()
        self.parts.mover.new_pass()
        self.parts.locks.new_pass()
        self.parts.follower.new_pass()
        self.parts.compressed.new_pass()
        self.parts.endings.new_pass()
        self.parts.namings.keep()
        self.parts.claims.key = self.parts.namings.own_key
        self._entered.clear()
        self.saw = _nothing
        resting = self.parts.catalog.resting
        whole = self.parts.scanner.shard
        batch = self.parts.new_batch()
        candidates = self.parts.scanner.candidates(self._enter)
        looked = 0
        try:
            if not self._helping and not self.parts.catalog.resting:
                self._recovery.run()
            if self.parts.catalog.resting:  # it did not read, or not all of, the claims that wait for their rows
                self._events.still_uncatalogued(waiting_for_rows)
            for candidate in candidates:
                self._options.liveness.beat()  # a scan that finds nothing to move may take minutes
                looked += 1
                self._admit(candidate, batch)
                if batch.full or (self.parts.admission.exhausted and batch.items) or looked >= SCANNED:
                    self._count_found(len(batch.items))
                    moving, batch = batch, self.parts.new_batch()
                    self._move(moving, after_batch, self._entering)
                    del moving  # or its directories stay open beside those of the next
                    if not self._helping:
                        self._visit_others(after_batch)
                    looked = 0
                    if stop():
                        return counts
            moving, batch = batch, self.parts.new_batch()
            self._move(moving, after_batch, None)
            if not self._helping:
                unread = self.parts.scanner.unread | self.parts.admission.unopened
                self._check_room()
                skipped = skips(unread, self.parts.scanner.containers, self._entered)
                self.parts.compressed.end(log.state.source for log in self.parts.copies.records.logs.values())
                self.parts.endings.end(skipped)
                self._remove_orphans()
                if self._helper is None and not resting:
                    self.saw = lambda directory: not skipped(directory)
        finally:
            candidates.close()
            self.parts.visits.close()
            for item in batch.items:
                item.close()
            self.parts.destination.begin()  # else the directories of the last batch stay open until the next
            self.parts.scanner.shard = whole
            self._found = 0
            self._end_help(stop)
            self._uncatalogued = counts.uncatalogued
            self.parts.locks.release()
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
            self.parts.follower.tick()
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
            self.replicas.forget(self.parts.orphans.volume, most)

    def close(self) -> None:
        """Release the mover's slot and every lock, and close everything. Does nothing the second time."""
        self.parts.closing.close()

    @property
    def is_whole(self) -> bool:
        """Whether the last pass has read all of the spool, so that its counts are those of the spool."""
        return self.saw("") and all(map(self.saw, self.parts.scanner.containers))

    def _end_help(self, stop: Callable[[], bool]) -> None:
        helper, self._helper = self._helper, None
        self.parts.rate.share(1)
        moved = helper.end(stop) if helper is not None else None
        if moved is not None:
            self._events.helped(moved)

    def _enter(self, unit: str) -> bool:
        if self._helping:
            return True  # the claims keep it from moving what another sidecar moves
        if not self.parts.locks.acquire(unit):
            return False
        self._entering = unit
        self._entered.add(unit)
        self.parts.endings.entered(unit)
        return True

    def _count_found(self, count: int) -> None:
        self._found += count
        if self._found >= HELP_AFTER and self._helper is None and self._job.workers > 1:
            with contextlib.suppress(OSError):  # too many processes or open files: it works alone
                self._helper = Helper(self._job)  # before the batch is moved: it takes a moment to start
                self.parts.scanner.shard = (0, 2)
                self.parts.rate.share(2)

    def _move(self, batch: FileBatch, after_batch: Callable[[PassCounts], None], keep: str | None) -> None:
        """Move a batch, and let go of the units that it was of but the one that is being scanned."""
        if batch.items:
            self.parts.mover.move(batch.items)
            after_batch(self._events.counts)
            self.parts.follower.tick(_TICK)  # a backlog may take minutes
        if self._helper is None:
            self.parts.locks.release(keep)
        self._pause_for(sum(item.work for item in batch.items if item.done))

    def _admit(self, candidate: Candidate, batch: FileBatch) -> None:
        """Add a file to a batch if it may move."""
        self.parts.compressed.see(candidate)
        item = self.parts.admission.admit(candidate)
        if item is None:
            return
        batch.add(item)  # first, so that whatever happens it is closed
        # A helper has no locks, and so no say over a log that is followed.
        if self.parts.ended.discard(item) or (
            item.followed and (self._helping or not self.parts.follower.is_as_it_was(item))
        ):
            batch.drop_last()

    def _visit_others(self, after_batch: Callable[[PassCounts], None]) -> None:
        """Move some files of the other containers, so that they do not wait for the backlog of this one.

        What is left there is not counted: the scan does that, once for each container.
        """
        batch = self.parts.new_batch()
        with self._events.moved_only(), self.parts.admission.uncounted(), contextlib.ExitStack() as locks:
            try:
                for entry in self.parts.visits.containers(self._entering):
                    with contextlib.ExitStack() as lock:
                        mine = lock.enter_context(self.parts.locks.holding(entry.name, wait=False))
                        if mine and self._admit_some(entry, batch):
                            locks.enter_context(lock.pop_all())  # until its files are moved
                    if batch.full or self.parts.admission.exhausted:
                        break
                if batch.items:
                    self.parts.mover.move(batch.items)
            finally:
                for item in batch.items:
                    item.close()
        if batch.items:
            after_batch(self._events.counts)
            self._pause_for(sum(item.work for item in batch.items if item.done))

    def _admit_some(self, entry: os.DirEntry[str], batch: FileBatch) -> bool:
        """Add the first files of one container to a batch. Return whether there was any."""
        before, work = len(batch.items), 0
        with contextlib.closing(self.parts.visits.candidates(entry)) as candidates:
            for candidate in candidates:
                self._options.liveness.beat()
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
        failure = self.parts.claims.failure()
        if failure is not None:
            raise SpoolError(
                f"cannot move files within {self.parts.spool.shown!r}: {describe(failure)}; make room there, "
                "100 KiB are enough; nothing was lost"
            ) from failure

    def _pause_for(self, count: int) -> None:
        wait = self.parts.rate.spend(count)
        if wait > 0:
            self._options.pause(wait)

    def _remove_orphans(self) -> None:
        if not self._job.orphans:
            return
        for unit in sorted(self._entered - self.parts.namings.kinds()):
            with self.parts.locks.holding(unit) as mine:
                if mine:
                    self.parts.orphans.remove_if_dead(unit)


def _nothing(directory: str) -> bool:
    return False


def tune_memory() -> None:
    """For a process that does nothing but collect: leave the garbage collector out of the way.

    Its cyclic search costs a tenth of the time of a move, and finds nothing: what belongs to a file goes
    with the last reference to it.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
