"""Build the parts of a collector."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.collect.naming import Naming, NamingStore
from sharedvol_sidecar.collect.serving import Serving
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.ownership import Ownership
from sharedvol_sidecar.errors import FULL, SpoolError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.compressed_copies import CompressedCopies
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.endings import LogEndings
from sharedvol_sidecar.follow.follower import LogFollower
from sharedvol_sidecar.follow.live_copies import FollowOptions, LiveCopies
from sharedvol_sidecar.follow.live_names import LiveNames
from sharedvol_sidecar.follow.sealer import Sealer
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.mounts import shares_file_system
from sharedvol_sidecar.fs.private import directory_id
from sharedvol_sidecar.monitor.liveness import Liveness, Unwatched
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.orphans import Orphans
from sharedvol_sidecar.spool.quiet_time import QuietTime
from sharedvol_sidecar.spool.renames import RenameLog, WriterRenames
from sharedvol_sidecar.spool.scanner import Scanner
from sharedvol_sidecar.spool.visits import Visits
from sharedvol_sidecar.spool.watcher import Watch
from sharedvol_sidecar.transfer.admission import Admission, AdmissionRules, Logs
from sharedvol_sidecar.transfer.batch import MAX_BATCH_BYTES, MAX_FOLLOWED, FileBatch, raise_descriptors
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.claims import Claims
from sharedvol_sidecar.transfer.contents import Contents
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.mover import Mover
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.transfer.rate import Rate
from sharedvol_sidecar.transfer.release import ClaimRelease
from sharedvol_sidecar.transfer.retries import FailedFiles


@dataclass(frozen=True)
class CollectorOptions:
    """What differs between the collectors of `run`, of `once` and of a helper process.

    Attributes:
        watch: watches each directory that is scanned, and knows which files were renamed into place; None for none.
        shard: ``(k, n)``: the k-th of n parts of the files. All but the first part are for helpers.
        wait: seconds to wait for a container that another sidecar is working on.
        pause: waits so many seconds, or less if it is time to stop.
        liveness: receives a sign of life for each file, and for each chunk of a long one.
    """

    watch: Watch | None = None
    shard: tuple[int, int] = (0, 1)
    wait: float = 0.0
    pause: Callable[[float], None] = time.sleep
    liveness: Liveness = field(default_factory=Unwatched)

    @property
    def helping(self) -> bool:
        """Whether this is a helper's part."""
        return self.shard[0] > 0


@dataclass
class Parts:
    """The parts of one collector.

    Attributes:
        spool: the spool's root.
        spool_id: tells this spool from others with the same destination.
        linked: whether spool and destination are one file system, so that copies are the exception.
        descriptors: how many a batch may have open.
        closing: closes the parts.
    """

    spool: Directory
    spool_id: str
    linked: bool
    descriptors: int
    namings: NamingStore
    claims: Claims
    destination: Destination
    catalog: CatalogWriter
    locks: ContainerLocks
    scanner: Scanner
    visits: Visits
    quiet: QuietTime
    admission: Admission
    linker: Linker
    mover: Mover
    failed: FailedFiles
    copies: LiveCopies
    follower: LogFollower
    endings: LogEndings
    compressed: CompressedCopies
    ended: EndedLogs
    orphans: Orphans
    rate: Rate
    depth: int
    closing: contextlib.ExitStack

    def new_batch(self) -> FileBatch:
        """Begin a batch, with the descriptors that the followed logs leave."""
        most = min(MAX_BATCH_BYTES, self.rate.at_once)
        return FileBatch(self.descriptors - 3 * len(self.follower), self.depth, most)


def build(job: CollectorConfig, events: Events, options: CollectorOptions) -> Parts:
    """Build the parts of a collector. Close `Parts.closing`.

    Raises:
        ConfigError: the template is wrong, or another sidecar collects from the spool into another destination.
        SpoolError: the spool is too full to begin.
        OSError: a directory is missing or cannot be written.
    """
    # No part refers to the collector: it would close only when the garbage collector runs, which is rare.
    with contextlib.ExitStack() as parts:
        spool = parts.enter_context(open_root(Path(job.spool)))
        root = parts.enter_context(open_root(Path(job.collected)))
        namings = NamingStore(spool, Naming.of(job))
        parts.callback(namings.close)
        with _needing_room(spool):
            claims = Claims(spool, namings.own_key)
            parts.callback(claims.close)
            spool_id = directory_id(spool)
        serving = Serving(claims, root, job.spool, job.collected)
        parts.callback(serving.close)
        mark = f"{spool_id}-{claims.slot}"
        destination = Destination(root, Ownership(job.uid, job.gid, job.file_mode, job.directory_mode), mark)
        parts.callback(destination.close)
        linked = shares_file_system(spool, root, mark)
        open_catalog = functools.partial(Catalog.open, job.catalog, root)
        catalog = CatalogWriter(open_catalog if job.catalog is not None else None, events)
        parts.callback(catalog.close)
        return _assemble(
            job, events, options, _Base(spool, spool_id, linked, namings, claims, serving, destination, catalog), parts
        )


@dataclass
class _Base:
    """What the other parts stand on."""

    spool: Directory
    spool_id: str
    linked: bool
    namings: NamingStore
    claims: Claims
    serving: Serving
    destination: Destination
    catalog: CatalogWriter


def _assemble(
    job: CollectorConfig, events: Events, options: CollectorOptions, base: _Base, parts: contextlib.ExitStack
) -> Parts:
    spool, claims, destination, catalog = base.spool, base.claims, base.destination, base.catalog
    template, layout, liveness = base.namings.own.names, base.namings.own.layout, options.liveness
    descriptors = raise_descriptors()
    logs = Logs(() if options.helping else job.follow, job.seal_after, job.compress)
    most = max(1, min(MAX_FOLLOWED, descriptors // 8))  # files that move need descriptors as well

    ended = EndedLogs(destination.root, base.spool_id, claims, events, liveness)
    parts.callback(ended.close)
    follow_options = FollowOptions(job.seal_after, job.quiet, job.min_free, most)
    names = LiveNames(destination, template)
    copies = LiveCopies(destination, base.spool_id, names, ended, events, liveness, follow_options)
    parts.callback(copies.records.close)
    with _needing_room(spool):
        locks = ContainerLocks(spool, options.wait, copies.records.refresh)
    parts.callback(locks.close)

    failed = FailedFiles(events)
    linker = Linker(destination, template, base.spool_id, catalog, base.linked, job.min_free, liveness)
    digests = job.digests and job.catalog is not None
    contents = Contents(spool, linker, failed, events, liveness, digests)
    claimer = Claimer(spool, claims, linker, copies, events)
    placer = Placer(destination, claims, claimer, linker, failed, events, liveness)
    release = ClaimRelease(destination, claims, linker, catalog, copies, events, liveness)
    mover = Mover(claims, failed, contents, claimer, placer, catalog, release)

    sealer = Sealer(copies, destination, locks, ended, mover, linker, logs)
    follower = LogFollower(copies, sealer, locks, ended, events)
    endings = LogEndings(follower, copies, sealer, locks, layout, claims, base.serving)

    watch = options.watch
    renames = WriterRenames(watch.placed if watch is not None else RenameLog(), claims.put_backs)
    quiet = QuietTime(job.quiet)
    rules = AdmissionRules(logs, destination.ownership)
    # Opened again: two descriptors of one opening share the position in the list of its entries.
    again = parts.enter_context(spool.open("."))
    return Parts(
        spool=spool,
        spool_id=base.spool_id,
        linked=base.linked,
        descriptors=descriptors,
        namings=base.namings,
        claims=claims,
        destination=destination,
        catalog=catalog,
        locks=locks,
        scanner=Scanner(
            spool,
            layout,
            events,
            watch.add if watch is not None else None,
            options.shard,
            job.follow,
            copies.records.has_inode,
        ),
        visits=Visits(Scanner(again, layout, Events())),  # the scan counts and reports what a visit finds
        quiet=quiet,
        admission=Admission(spool, quiet, renames, linker, follower, events, rules),
        linker=linker,
        mover=mover,
        failed=failed,
        copies=copies,
        follower=follower,
        endings=endings,
        compressed=CompressedCopies(logs.kinds, events),
        ended=ended,
        orphans=Orphans(spool, job.spool, base.namings.kinds, events),
        rate=Rate(job.rate),
        depth=job.template.count("/"),
        closing=parts.pop_all(),
    )


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
