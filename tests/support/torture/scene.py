"""A small spool in which names collide, made anew for each point, and a mover's pass over it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401  here: not in every child anew

from sharedvol import SharedVolError
from sharedvol_sidecar.catalog import session as catalog_session
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.collect import once
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import content as contents
from support.torture import judge
from support.torture.isolated import libc
from support.torture.judge import Expected, Look, Violation
from support.torture.tracer import Traced, fork, run

COLLIDING = "{kind}/{base}"
OLD = "results/a.json"
SOURCES = {
    "c1/results/a.json": b"of c1 " * 9,
    "c2/results/a.json": b"of c2 " * 9,
    "c3/results/a.json": b"of c1 " * 9,  # the same content, and another file
    "c1/results/deep/er/b.json": b"deep",
    "results/job_7_c9.json": b"flat",
    "logs/c9_20260131.log": b"",
}


class Stand:
    """One volume.

    Attributes:
        spool: what the replicas write below.
        collected: where it goes.
        expected: what must be there in the end.
        said: what the movers said; a traceback is a violation.
        compress: how logs are compressed.
    """

    def __init__(self, spool: Path, collected: Path, patch: Callable[[], object], said: BinaryIO) -> None:
        self.spool, self.collected, self._patch, self.said = spool, collected, patch, said
        self.expected = Expected()
        self.compress = ""

    def passes(self, between: Sequence[Callable[[], object]] = ()) -> int:
        """A pass, and after each of ``between`` another, of one mover that stays, as a service does. Returns 0."""
        self._prepare()
        collector = Collector(self._job, Events(print))
        try:
            collector.run_pass()
            for act in between:
                act()
                collector.run_pass()
        finally:
            collector.close()
        return 0

    @property
    def _job(self) -> CollectorConfig:
        return CollectorConfig(
            str(self.spool), str(self.collected), template=COLLIDING, quiet=0.0, workers=1, compress=self.compress
        )

    def once(self) -> int:
        """One run, in this process. Returns 1 if it could not move something, and said so, else 0."""
        self._prepare()
        try:
            return int(once.once(self._job, print).failed > 0)
        except (OSError, SharedVolError) as error:
            print(error)
            return 1

    def command(self) -> int:
        """The same by the command, which is slower to start. Returns its exit code."""
        self._prepare()
        for name in [name for name in os.environ if name.startswith("SHAREDVOL_")]:
            del os.environ[name]
        directories = ["--from", str(self.spool), "--to", str(self.collected)]
        try:
            main(["once", *directories, "--quiet", "0", "--workers", "1", "--template", COLLIDING])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def _prepare(self) -> None:
        contents.CHUNK = 16  # several calls for one copy, so that it can be cut
        # Where a lock is taken, and only the answer was a fault, nobody will ever give it back.
        catalog_session._PATIENCE, once.PATIENCE = 0.5, 0.5  # type: ignore[misc]
        self._patch()

    def traced(self) -> Traced:
        """A run in a child, stopped before each call that changes something."""
        return Traced(self.once, self.said)

    def start(self) -> int:
        """A run in a child that nothing happens to. Returns its id."""
        return fork(self.once, self.said)

    def recover(self, where: str) -> None:
        """One undisturbed run, after which everything is collected and nothing is on its way."""
        status = run(self.once, self.said)
        self.check_said(where)
        if status != 0:
            raise Violation(f"{where}: the recovery fails with status {status}: {self.words()}")
        self.check_end(where)

    def look(self) -> Look:
        return judge.look(self.spool, self.collected)

    def check_moment(self, where: str) -> None:
        """While movers are dead or stopped."""
        seen = self.look()
        judge.check_moment(seen, self.expected, where)
        judge.check_catalog_moment(self.collected, seen, self.expected, where)

    def check_end(self, where: str) -> None:
        """After an undisturbed run."""
        seen = self.look()
        judge.check_end(seen, self.expected, where)
        judge.check_catalog(self.collected, seen, self.expected, where)

    def check_told(self, status: int, where: str) -> None:
        """A run that something failed in says so, in words, or did everything."""
        self.check_said(where)
        if status not in (0, 1, 2):
            raise Violation(f"{where}: it died with status {status}: {self.words()}")
        if status == 0:
            missing = self.look_missing()
            if missing:
                raise Violation(f"{where}: a failure was reported as success, not collected: {missing}")

    def look_missing(self) -> str:
        """The files that are not collected."""
        missing = self.expected.final
        missing.subtract(file.digest for file in self.look().final)
        return self.expected.show(+missing) if +missing else ""

    def check_said(self, where: str) -> None:
        """No mover ends in a traceback."""
        if "Traceback" in self.words():
            raise Violation(f"{where}: it died of an exception: {self.words()}")

    def words(self) -> str:
        """What the movers said."""
        return os.pread(self.said.fileno(), 100_000, 0).decode()


class Scene:
    """Makes volumes.

    Args:
        spool: below which spools are made.
        collected: below which destinations are made: on the same file system, or not.
        patch: changes the mover before it runs: a planted bug.
        synced: whether the writers synced their files; else a power cut may take them while they wait.
        sources: the files to collect, by their paths in the spool.
    """

    def __init__(
        self,
        spool: Path,
        collected: Path,
        patch: Callable[[], object] = lambda: None,
        synced: bool = False,
        sources: Mapping[str, bytes] = SOURCES,
    ) -> None:
        self.spool, self.collected, self.patch, self.synced, self.sources = spool, collected, patch, synced, sources

        self._warm = False

    @contextlib.contextmanager
    def stand(self) -> Iterator[Stand]:
        """A volume, removed at the end."""
        if not self._warm:
            self._warm_up()
        top, there = Path(tempfile.mkdtemp(dir=self.spool)), Path(tempfile.mkdtemp(dir=self.collected))
        try:
            with tempfile.TemporaryFile(dir="/dev/shm") as said:
                stand = Stand(top / "spool", there / "collected", self.patch, said)
                self._fill(stand)
                yield stand
        finally:
            shutil.rmtree(top)
            shutil.rmtree(there)

    def _warm_up(self) -> None:
        """What a mover computes once is computed here, and not in every child."""
        self._warm = True
        with tempfile.TemporaryDirectory(dir="/dev/shm") as there:
            for name in ("spool", "collected"):
                Path(there, name).mkdir()
            Path(there, "spool", "results").mkdir()
            Path(there, "spool", "results", "job_7_c9.json").touch()
            once.once(CollectorConfig(f"{there}/spool", f"{there}/collected", quiet=0.0, workers=1), lambda event: None)

    def _fill(self, stand: Stand) -> None:
        old = stand.collected / OLD
        old.parent.mkdir(parents=True)
        old.write_bytes(b"was here before")
        stand.expected.before[OLD] = stand.expected.known(b"was here before")
        _sync(stand.collected)
        stand.spool.mkdir()
        _sync(stand.spool)
        for path, content in self.sources.items():
            target = stand.spool / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            stand.expected.add(content)
        if self.synced:
            _sync(stand.spool)


def _sync(directory: Path) -> None:
    """Everything on its file system is on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert libc.syncfs(fd) == 0, f"syncfs {directory}"
    finally:
        os.close(fd)


def reap(pid: int) -> int:
    """The exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(pid: int) -> None:
    """End a child that nothing depends on any more."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
