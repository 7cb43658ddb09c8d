"""One spool, one destination: scan, admit, move, in batches; and help with a backlog."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sharedvol import AlreadyPublishedError, publish
from sharedvol.errors import describe
from sharedvol_sidecar.admission import Admission, Logs
from sharedvol_sidecar.catalog import Catalog
from sharedvol_sidecar.claims import Claims, day_of_batch, open_private, remove_empty
from sharedvol_sidecar.destination import Destination, Ownership, shares_file_system
from sharedvol_sidecar.directories import Directory, open_root
from sharedvol_sidecar.errors import ConfigError, DestinationError
from sharedvol_sidecar.follow import Followed, Log
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.layout import Layout
from sharedvol_sidecar.limits import Rate
from sharedvol_sidecar.mover import Mover
from sharedvol_sidecar.orphans import Orphans
from sharedvol_sidecar.publisher import Publisher
from sharedvol_sidecar.quiet import Quiet
from sharedvol_sidecar.register import Register
from sharedvol_sidecar.report import Event, Listener, Tally
from sharedvol_sidecar.scan import Candidate, Scanner
from sharedvol_sidecar.staging import purge
from sharedvol_sidecar.template import DEFAULT, Template
from sharedvol_sidecar.units import Units

MAX_BATCH = 2_000
"""Files that are leased and synced together. More saves little, and delays the writers that wait for one."""

MAX_BATCH_BYTES = 256 * 1024 * 1024
"""Bytes that are read for their digests, or copied, while all leases of the batch are held."""

HELP_AFTER = 2_000
"""Files found in one pass after which a second process helps."""

_RESERVE = 200  # descriptors for everything else: a scan holds two for each directory it is in
_DAY = 86_400 * 1_000_000_000
_LOOK = 0.2  # seconds between two looks at whether to stop while the helper works


@dataclass(frozen=True, slots=True)
class Job:
    """What to collect, and how; the settings in plain values.

    Attributes:
        spool: the directory that the replicas write below.
        collected: the directory that files go to.
        template: their names there.
        quiet: the quiet time, in seconds.
        kinds: the names of the sources' directories.
        pattern: how a flat directory's file names tell the container, or None for the known forms.
        workers: processes that work on a backlog, at most.
        follow: the kinds whose files are followed while they are open.
        seal_after: where no lease can be had, seconds without a change after which a log is finished.
        compress: what finished logs are compressed by: ``gzip``, ``zstd`` or empty.
        catalog: its URL; empty for the one beside the destination, None for none.
        digests: whether to take every file's digest.
        uid, gid, file_mode, directory_mode: whose collected files are; None as they were.
        min_free: bytes that copies leave free in the destination.
        rate: bytes a second that are moved at most; 0 is no limit.
        orphans: whether the empty directories of dead containers are removed.
    """

    spool: str
    collected: str
    template: str = DEFAULT
    quiet: float = 2.0
    kinds: tuple[str, ...] = ("results", "logs")
    pattern: str | None = None
    workers: int = 2
    follow: tuple[str, ...] = ("logs",)
    seal_after: float = 60.0
    compress: str = ""
    catalog: str | None = ""
    digests: bool = True
    uid: int | None = None
    gid: int | None = None
    file_mode: int | None = None
    directory_mode: int | None = None
    min_free: int = 0
    rate: float = 0.0
    orphans: bool = True


class Collector:
    """Does the job, a pass at a time.

    Args:
        job: what to do.
        tell: told of problems.
        visit: called with each directory that is scanned.
        shard: ``(k, n)``: the k-th of n parts of the files. Not the first: a helper of the one that is.
        tell_collected: tell of every collected file too.
        wait: seconds to wait for a container that another sidecar is working on.
        pause: waits so many seconds, or less if it is time to stop.

    Raises:
        ConfigError: the template is wrong.
        OSError: a directory is missing or cannot be written.
    """

    def __init__(
        self,
        job: Job,
        tell: Listener,
        visit: Callable[[Directory], None] | None = None,
        shard: tuple[int, int] = (0, 1),
        tell_collected: bool = False,
        wait: float = 0.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._job, self._tell, self._pause = job, tell, pause
        self._helping = shard[0] > 0
        spool, root = open_root(Path(job.spool)), open_root(Path(job.collected))
        self._destination = Destination(root, Ownership(job.uid, job.gid, job.file_mode, job.directory_mode))
        self.claims = Claims(spool)
        self._spool_id = _spool_id(spool)
        self.linked = shares_file_system(spool, root, f"{self._spool_id}-{self.claims.slot}")
        self._units = Units(spool, wait)
        self.orphans = Orphans(spool, job.spool, job.kinds, tell)
        self.register = Register(self._open_catalog if job.catalog is not None else None, tell)
        self._assemble(spool, visit, shard, tell_collected)
        self._descriptors = _descriptors()
        self._rate = Rate(job.rate / (2 if self._helping else 1))
        self._helper: subprocess.Popen[bytes] | None = None

    def _assemble(
        self, spool: Directory, visit: Callable[[Directory], None] | None, shard: tuple[int, int], tell_collected: bool
    ) -> None:
        job, tell = self._job, self._tell
        template = Template(job.template)
        layout = Layout(job.kinds, re.compile(job.pattern) if job.pattern else None)
        self._quiet = Quiet(job.quiet)
        self._scanner = Scanner(spool, layout, tell, visit, shard, job.follow)
        publisher = Publisher(
            self._destination,
            template,
            lambda slot: self._destination.staging(self._spool_id, slot),
            self.linked,
            job.min_free,
            self.register.remove,
        )
        self.followed = Followed(
            self._destination, self._spool_id, template, self._destination.ownership.dress, self._has_room, tell
        )
        self._logs = Logs(() if self._helping else job.follow, job.seal_after, job.compress)
        self.admission = Admission(spool, self._quiet, publisher.hide, tell, self._logs, self._grows, self._is_followed)
        self._mover = Mover(
            spool,
            self._destination,
            self.claims,
            publisher,
            self.register,
            self.linked,
            tell,
            tell_collected,
            job.digests,
            self.followed.drop,
        )
        self._tally = Tally()

    @property
    def due(self) -> float | None:
        """Seconds until the first of the files that the last pass left as settling may be finished."""
        return self.admission.due

    @property
    def root(self) -> Directory:
        """The destination's root."""
        return self._destination.root

    def prepare_catalog(self) -> None:
        """Make the catalog where it is missing: of a destination without files `ls` then shows none."""
        self.register.prepare()

    @property
    def short_of_space(self) -> bool:
        """Whether less is free in the destination than is to stay free."""
        return self._job.min_free > 0 and self._destination.free() < self._job.min_free

    def run_pass(
        self, stop: Callable[[], bool] = lambda: False, after_batch: Callable[[Tally], None] = lambda tally: None
    ) -> Tally:
        """Collect what is finished now: first what dead movers had claimed, then what a scan finds.

        Args:
            stop: asked after each batch whether to end early.
            after_batch: called after each batch with the counts so far.

        Raises:
            DestinationError: the destination takes nothing now.
            SpoolError: the spool gives nothing now.
            OSError: the spool cannot be read.
        """
        tally = self._tally = Tally()
        self._quiet.new_pass()
        self.admission.new_pass()
        self._mover.new_pass()
        self.followed.refresh()
        self._entered: set[str] = set()
        whole = self._scanner.shard
        batch = self._new_batch()
        try:
            if not self._helping and not self.register.resting:
                self._recover(tally)
            for candidate in self._scanner.candidates(tally, self._enter):
                item = self.admission.admit(candidate, tally)
                if item is None:
                    continue
                if item.followed and not self._is_as_it_was_followed(item, tally):
                    item.close()
                    continue
                batch.add(item)
                if batch.full:
                    self._count_found(len(batch.items))
                    moving, batch = batch, self._new_batch()
                    self._move(moving, tally, after_batch, self._entering)
                    del moving  # or its directories stay open beside those of the next
                    if stop():
                        return tally
            moving, batch = batch, self._new_batch()
            self._move(moving, tally, after_batch, None)
            if not self._helping:
                self._end_logs(tally)
                self._remove_orphans(tally)
        finally:
            for item in batch.items:
                item.close()
            self._scanner.shard = whole
            self._found = 0
            self._units.release()
            self._end_help(tally, stop)
        return tally

    def tick(self) -> Tally:
        """Follow the logs that have grown, without a scan.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        tally = self._tally = Tally()
        for log in self.followed.growing():
            with self._units.held(log.state.unit) as mine:
                if mine:
                    self._advance(log, tally)
        self._pause_for(tally.followed)
        return tally

    def close(self) -> None:
        """Give up the mover's slot."""
        self.followed.close()
        self.register.close()
        self.claims.close()

    _found = 0
    _entering: str | None = None

    def _enter(self, unit: str) -> bool:
        if self._helping:
            return True  # they are its principal's
        if not self._units.take(unit):
            return False
        self._entering = unit
        self._entered.add(unit)
        return True

    def _count_found(self, count: int) -> None:
        self._found += count
        if self._found >= HELP_AFTER and self._helper is None and self._job.workers > 1:
            self._call_help()  # before the batch is moved: it takes a moment to start

    def _move(self, batch: _Batch, tally: Tally, after_batch: Callable[[Tally], None], keep: str | None) -> None:
        """Move a batch, and let go of the units that it was of but the one that is being scanned."""
        before = tally.bytes
        if batch.items:
            self._mover.move(batch.items, tally)
            after_batch(tally)
        if self._helper is None:
            self._units.release(keep)
        self._pause_for(tally.bytes - before)

    def _pause_for(self, count: int) -> None:
        wait = self._rate.spend(count)
        if wait > 0:
            self._pause(wait)

    def _recover(self, tally: Tally) -> None:
        for slot, root in self.claims.left_behind():
            for name in os.listdir(root.fd):
                try:
                    directory = root.open(name)
                except NotADirectoryError:
                    continue  # nothing of ours
                batch = self._new_batch()
                day = day_of_batch(name)
                for candidate in self._scanner.claimed(directory, tally):
                    item = self.admission.admit(candidate, tally, f"{slot}/{name}/{candidate.path}")
                    if item is not None and day is not None:
                        item.day = day
                    if item is not None and (not item.followed or self._is_as_it_was_followed(item, tally)):
                        batch.add(item)
                    if batch.full:
                        self._mover.move(batch.items, tally)
                        batch = self._new_batch()
                if batch.items:
                    self._mover.move(batch.items, tally)
            remove_empty(root)
            if not os.listdir(root.fd):
                self._purge(slot)

    # What follows is about logs that stay open.

    def _has_room(self) -> bool:
        if self.short_of_space:
            self._tally.no_room += 1
            return False
        return True

    def _is_followed(self, fd: int, inode: int) -> str:
        return self.followed.see(fd, inode) if inode in self.followed.inodes else ""

    def _grows(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        with self._guarded(candidate.path, self._tally):
            log = self.followed.follow(candidate, fd, info)
            self._advance(log, self._tally)

    def _advance(self, log: Log, tally: Tally) -> None:
        """Copy what a log has grown by, into a new live file if it was cut."""
        with self._guarded(log.state.source, tally):
            if self.followed.advance(log, tally) or not self._seal(log, tally):
                return
            again = self.followed.next_generation(log)
            if again is not None:
                self.followed.advance(again, tally)

    def _is_as_it_was_followed(self, item: Item, tally: Tally) -> bool:
        """Before a followed log is moved: what it held and holds no more is kept. False if that has to wait."""
        with self._guarded(item.candidate.path, tally):
            log = self.followed.was_cut(item.followed, item.fd)
            if log is None:
                return True
            if self._seal(log, tally):
                self.followed.next_generation(log)
                return True
        return False

    def _seal(self, log: Log, tally: Tally) -> bool:
        """Give a live file its final name. Whether it has it."""
        item = self.followed.sealing(log)
        if item is None:
            return True
        item.encoding = self._logs.encoding_of(item.candidate)
        self._mover.move([item], tally)
        return item.done

    def _end_logs(self, tally: Tally) -> None:
        """The logs that this pass did not see: those that are gone get their final names."""
        for log in list(self.followed.logs.values()):
            unit = log.state.unit
            if log.seen or (unit in self._scanner.units and unit not in self._entered):
                continue
            with self._units.held(unit) as mine:
                if not mine:
                    continue
                self._advance(log, tally)
                log = self.followed.logs.get(log.id)  # type: ignore[assignment]
                if log is None or not self.followed.ended(log):
                    continue
                # A claim of it that a dead mover left, or a helper has, is the log itself: that is moved.
                if int(log.id.partition("-")[0], 16) in self.claims.inodes():
                    continue
                with self._guarded(log.state.source, tally):
                    if self._seal(log, tally):
                        self.followed.drop(log.id)

    @contextlib.contextmanager
    def _guarded(self, path: str, tally: Tally) -> Iterator[None]:
        """One log that cannot be followed does not stop the others, a destination that fails does."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST):
                root = self._destination.root.shown
                raise DestinationError(
                    f"cannot follow {path!r} into {root!r}: {describe(error)}; nothing was lost, it stays in the spool"
                ) from error
            tally.failed += 1
            self._tell(Event("failed", path, f"cannot be followed: {describe(error)}"))

    def _remove_orphans(self, tally: Tally) -> None:
        if not self._job.orphans:
            return
        for unit in sorted(self._entered - set(self._job.kinds)):
            with self._units.held(unit) as mine:
                if mine:
                    self.orphans.look(unit)

    def _open_catalog(self) -> Catalog:
        return Catalog.open(self._job.catalog, self._destination.root)

    def _new_batch(self) -> _Batch:
        most = min(MAX_BATCH_BYTES, self._rate.at_once)
        return _Batch(self._descriptors, self._job.template.count("/"), most)

    def _purge(self, slot: str) -> None:
        """A slot without claims needs none of its copies."""
        staging = self._destination.staging(self._spool_id, slot)
        purge(staging)

    def _call_help(self) -> None:
        """A second process takes half of what is left: one is bound by the file system's journal and its own core."""
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "sharedvol_sidecar.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._helper.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # killed already: the next pass takes its half
            self._helper.stdin.write(json.dumps(asdict(self._job)).encode())
            self._helper.stdin.close()
        self._helper.stdin = None
        self._scanner.shard = (0, 2)

    def _end_help(self, tally: Tally, stop: Callable[[], bool]) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        answer = None
        try:
            while answer is None:
                if stop():
                    helper.terminate()  # it finishes its batch
                with contextlib.suppress(subprocess.TimeoutExpired):
                    answer = helper.communicate(timeout=_LOOK)[0]
        finally:
            if answer is None:  # a second signal ends us at once, and it is as safe to kill as we are
                helper.kill()
                helper.wait()
        # A helper that was killed reports nothing; the files it moved are moved, its claims are found by
        # the next pass. Of what it left only the next pass, which is whole, can tell.
        if helper.returncode == 0 and answer:
            counts = json.loads(answer)
            tally.add_moved(Tally(**counts))


def _spool_id(spool: Directory) -> str:
    """A name of this spool, for a destination that several share."""
    private = open_private(spool)
    try:
        with publish(f"/proc/self/fd/{private.fd}/id") as file:
            file.write(os.urandom(8).hex())
    except AlreadyPublishedError:
        pass
    fd = os.open("id", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=private.fd)
    try:
        text = os.read(fd, 100).decode("ascii", "replace")
    finally:
        os.close(fd)
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise ConfigError(f"{private.shown}/id does not hold a spool's id: remove it if nothing is being collected")
    return text


def tune_memory() -> None:
    """For a process that does nothing but collect: leave the garbage collector out of the way.

    Its cyclic search costs a tenth of the time of a move, and finds nothing: what belongs to a file goes
    with the last reference to it.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


class _Batch:
    """Files that are admitted one by one until descriptors or patience would run out.

    Args:
        descriptors: how many it may need.
        depth: of the destination's directories, without those of the file's own path.
        size: bytes that it may have; a larger file is a batch of its own.
    """

    def __init__(self, descriptors: int, depth: int, size: float) -> None:
        self.items: list[Item] = []
        self._left, self._depth, self._size = descriptors, depth, size
        self._directories: set[tuple[Directory, int]] = set()
        self._last: tuple[Directory, int] | None = None

    @property
    def full(self) -> bool:
        return len(self.items) >= MAX_BATCH or self._left <= 0 or self._size <= 0

    def add(self, item: Item) -> None:
        self.items.append(item)
        self._left -= 2  # the file, and its copy
        self._size -= item.info.st_size
        # A directory may need one in the spool and, with all those above it, one among the claims and one in
        # the destination; there another for another day. Files that each have their own are common.
        directory = (item.candidate.directory, item.info.st_mtime_ns // _DAY)
        if directory == self._last:
            return
        self._last = directory
        if directory not in self._directories:
            self._directories.add(directory)
            self._left -= 1 + 2 * item.candidate.path.count("/") + self._depth


def _descriptors() -> int:
    """How many a batch may have open, after the limit was raised as far as is allowed and of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_BATCH * 3 + _RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(soft, wanted) - _RESERVE)
