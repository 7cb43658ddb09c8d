"""One spool, one destination: scan, admit, move, in batches; and help with a backlog."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sharedvol import AlreadyPublishedError, publish
from sharedvol_sidecar.admission import Admission
from sharedvol_sidecar.claims import PRIVATE, Claims, open_private, remove_empty
from sharedvol_sidecar.destination import Destination, shares_file_system
from sharedvol_sidecar.directories import Directory, open_root
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.layout import Layout
from sharedvol_sidecar.mover import Mover
from sharedvol_sidecar.publisher import Publisher
from sharedvol_sidecar.quiet import Quiet
from sharedvol_sidecar.report import Listener, Tally
from sharedvol_sidecar.scan import Scanner
from sharedvol_sidecar.staging import purge
from sharedvol_sidecar.template import DEFAULT, Template

MAX_BATCH = 2_000
"""Files that are leased and synced together. More saves little, and delays the writers that wait for one."""

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
    """

    spool: str
    collected: str
    template: str = DEFAULT
    quiet: float = 2.0
    kinds: tuple[str, ...] = ("results", "logs")
    pattern: str | None = None
    workers: int = 2


class Collector:
    """Does the job, a pass at a time.

    Args:
        job: what to do.
        tell: told of problems.
        visit: called with each directory that is scanned.
        shard: ``(k, n)``: the k-th of n parts of the files.
        tell_collected: tell of every collected file too.

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
    ) -> None:
        self._job = job
        template = Template(job.template)
        spool, root = open_root(Path(job.spool)), open_root(Path(job.collected))
        layout = Layout(job.kinds, re.compile(job.pattern) if job.pattern else None)
        self.linked = shares_file_system(spool, root)
        self._claims = Claims(spool)
        self._spool_id = _spool_id(spool)
        self._destination = Destination(root)
        self._quiet = Quiet(job.quiet)
        self._scanner = Scanner(spool, layout, tell, visit, shard)
        publisher = Publisher(
            self._destination, template, lambda slot: self._destination.staging(self._spool_id, slot), self.linked
        )
        self._admission = Admission(spool, self._quiet, publisher.hide, tell)
        self._mover = Mover(spool, self._destination, self._claims, publisher, self.linked, tell, tell_collected)
        self._descriptors = _descriptors()
        self._helper: subprocess.Popen[bytes] | None = None

    @property
    def due(self) -> float | None:
        """Seconds until the first of the files that the last pass left as settling may be finished."""
        return self._admission.due

    def run_pass(
        self, stop: Callable[[], bool] = lambda: False, after_batch: Callable[[Tally], None] = lambda tally: None
    ) -> Tally:
        """Collect what is finished now: first what dead movers had claimed, then what a scan finds.

        Args:
            stop: asked after each batch whether to end early.
            after_batch: called after each batch with the counts so far.

        Raises:
            DestinationError: the destination takes nothing now.
            OSError: the spool cannot be read.
        """
        tally = Tally()
        self._quiet.new_pass()
        self._admission.due = None
        self._recover(tally)
        whole = self._scanner.shard
        batch = self._new_batch()
        found = 0
        try:
            for candidate in self._scanner.candidates(tally):
                item = self._admission.admit(candidate, tally)
                if item is None:
                    continue
                batch.add(item)
                if batch.full:
                    found += len(batch.items)
                    if found >= HELP_AFTER and self._helper is None and self._job.workers > 1:
                        self._call_help()  # before the batch is moved: it takes a moment to start
                    moving, batch = batch, self._new_batch()
                    self._mover.move(moving.items, tally)
                    del moving  # or its directories stay open beside those of the next
                    after_batch(tally)
                    if stop():
                        return tally
            if batch.items:
                moving, batch = batch, self._new_batch()
                self._mover.move(moving.items, tally)
                after_batch(tally)
        finally:
            for item in batch.items:
                item.close()
            self._scanner.shard = whole
            self._end_help(tally, stop)
        return tally

    def close(self) -> None:
        """Give up the mover's slot."""
        self._claims.close()

    def _recover(self, tally: Tally) -> None:
        for slot, root in self._claims.left_behind():
            for name in os.listdir(root.fd):
                try:
                    directory = root.open(name)
                except NotADirectoryError:
                    continue  # nothing of ours
                batch = self._new_batch()
                for candidate in self._scanner.claimed(directory, tally):
                    item = self._admission.admit(candidate, tally, f"{slot}/{name}/{candidate.path}")
                    if item is not None:
                        batch.add(item)
                    if batch.full:
                        self._mover.move(batch.items, tally)
                        batch = self._new_batch()
                if batch.items:
                    self._mover.move(batch.items, tally)
            remove_empty(root)
            if not os.listdir(root.fd):
                self._purge(slot)

    def _new_batch(self) -> _Batch:
        return _Batch(self._descriptors, self._job.template.count("/"))

    def _purge(self, slot: str) -> None:
        """A slot without claims needs none of its copies."""
        directory = self._destination.root
        try:
            for name in (PRIVATE, "staging", self._spool_id, slot):
                directory = directory.open(name)
        except FileNotFoundError:
            return
        purge(directory)

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
    """

    def __init__(self, descriptors: int, depth: int) -> None:
        self.items: list[Item] = []
        self._left, self._depth = descriptors, depth
        self._directories: set[tuple[Directory, int]] = set()
        self._last: tuple[Directory, int] | None = None

    @property
    def full(self) -> bool:
        return len(self.items) >= MAX_BATCH or self._left <= 0

    def add(self, item: Item) -> None:
        self.items.append(item)
        self._left -= 2  # the file, and its copy
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
