"""A service that fails again and again keeps no descriptor, thread, child or memory; and how it works with few."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import structlog
from support.sidecar.volume import CLI, Volume
from support.torture.filesystems import mount
from support.torture.isolated import isolated
from support.torture.layouts import EVERYTHING, LIMIT, timeout

from sharedvol_sidecar.config.loading import load
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.service import service
from sharedvol_sidecar.service.reporting import clear_up
from sharedvol_sidecar.service.timing import Timing
from sharedvol_sidecar.transfer import catalog_writer as register

pytestmark = timeout

WARM, FAULTS = (50, 500) if EVERYTHING else (15, 60)
"""Faults until the first and the last count."""

Steps = Generator[str, None, None]
"""What a disturbance does, up to each event that it waits for; endless, and well again at each ``collected``."""


class Disturbed:
    """A `Service` whose log drives a disturbance, without a pause anywhere.

    Args:
        volume: where.
        steps: the disturbance.
        job: settings of the job.
    """

    def __init__(self, volume: Volume, steps: Steps, **job: Any) -> None:
        self._steps, self._rounds = steps, 0
        self.counts: list[Counter[str]] = []
        self.blocks: list[int] = []
        self.reasons: set[str] = set()
        structlog.configure(processors=[self._heard], logger_factory=structlog.ReturnLoggerFactory())
        service.BACKOFF, service.SHORTEST_GAP, register._AGAIN = (0.0, 0.0), 0.0, 0.0
        # What is counted as open must be closed without the garbage collector.
        self._collect, gc.collect = gc.collect, lambda generation=2: 0
        self._awaited = next(steps)
        settings = load({"from": volume.spool, "to": volume.collected, "listen": "off"}, None)
        self._service = service.Service(volume.job(**job), Timing(interval=0.0), settings)

    def run(self, warm: int = WARM, rounds: int = FAULTS) -> Disturbed:
        """Until so many rounds are over; counts before, and at the end."""
        self._count_at = (warm, rounds)
        self._service.run()
        assert self._rounds >= rounds, "it ended before"
        return self

    def _heard(self, logger: object, method: str, event: dict[str, Any]) -> str:
        if event["event"] == "fault":
            self.reasons.add(event["reason"])
        if event["event"] == self._awaited:
            if event["event"] == "collected":
                self._round()
            self._awaited = next(self._steps)
        return ""

    def _round(self) -> None:
        self._rounds += 1
        if self._rounds in self._count_at:
            self.counts.append(_open())
            self._collect()
            self.blocks.append(sys.getallocatedblocks())
        if self._rounds == self._count_at[1]:
            os.kill(os.getpid(), signal.SIGTERM)


def _open() -> Counter[str]:
    mine = Path(f"/proc/{os.getpid()}")
    open_now = [os.readlink(link) for link in (mine / "fd").iterdir() if link.is_symlink()]
    descriptors = Counter(re.sub(r"\d+", "0", path) for path in open_now if not path.startswith(str(mine)))
    children = (mine / "task" / str(os.getpid()) / "children").read_text().split()
    return descriptors + Counter(threads=threading.active_count(), children=len(children))


def away(place: str) -> Callable[[Volume], Steps]:
    def steps(volume: Volume) -> Steps:
        path: Path = getattr(volume, place)
        hidden = path.with_name(f"{place}.away")
        for number in itertools.count():
            volume.write(f"c1/results/{number}", str(number))
            yield "collected"
            path.rename(hidden)
            yield "fault"
            hidden.rename(path)

    return steps


def read_only(volume: Volume) -> Steps:
    for number in itertools.count():
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        volume.write(f"c1/results/{number}-more", str(number))
        mount("none", volume.collected, "none", flags=REMOUNT | READ_ONLY)
        yield "fault"
        mount("none", volume.collected, "none", flags=REMOUNT)


REMOUNT, READ_ONLY = 0x20, 0x1  # of mount(2)


def full(volume: Volume) -> Steps:
    """Without inodes: no directory and no copy can be made."""
    filler = volume.collected / "filler"
    filler.mkdir()
    for number in itertools.count():
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        for one in itertools.count():
            try:
                (filler / str(one)).touch()
            except OSError:
                break
        volume.write(f"c1/results/{number}-more", str(number))
        yield "fault"
        for path in filler.iterdir():
            path.unlink()


def exhausted(volume: Volume) -> Steps:
    for number in itertools.count():
        volume.write(f"c{number % 3}/results/{number}", str(number))
        yield "collected"
        taken = _all_descriptors()
        yield "fault"
        for fd in taken:
            os.close(fd)


def _all_descriptors() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return taken


def foreign(volume: Volume) -> Steps:
    """The private directory of the spool is open to all, when everything is opened anew."""
    private, hidden = volume.spool / ".sharedvol", volume.collected.with_name("collected.away")
    for number in itertools.count():
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        private.chmod(0o777)
        volume.collected.rename(hidden)
        yield "fault"
        hidden.rename(volume.collected)
        yield "fault"
        private.chmod(0o700)


def half_way(volume: Volume) -> Steps:
    """What is opened anew fails at another place each time."""
    hidden = volume.collected.with_name("collected.away")
    places = ["spool/.sharedvol/movers", "spool/.sharedvol/claims/0", "spool/.sharedvol/units", "spool/.sharedvol/id"]
    places += ["collected/.sharedvol", "collected/.sharedvol/follow", "spool/.sharedvol/claims"]
    for number, place in zip(itertools.count(), itertools.cycle(places), strict=False):
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        volume.collected.rename(hidden)
        yield "fault"
        hidden.rename(volume.collected)
        path = volume.spool.parent / place
        path.rename(path.with_name("saved"))
        path.symlink_to("/nowhere")
        yield "fault"
        path.unlink()
        path.with_name("saved").rename(path)


def catalog(volume: Volume) -> Steps:
    """The catalog cannot be opened, then it is damaged; files are collected all the same."""
    place = volume.collected / ".sharedvol" / "catalog.db"
    for number in itertools.count():
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        for path in place.parent.glob("catalog.db*"):
            path.unlink()
        if number % 2:
            place.mkdir()
        else:
            place.write_bytes(b"no database" * 1000)
        volume.write(f"c1/results/{number}-more", str(number))
        yield "catalog"
        place.rmdir() if number % 2 else place.unlink()
        yield "catalog"


def bad_names(volume: Volume) -> Steps:
    """One file that cannot have its name, and one that is not a file: no fault."""
    (volume.collected / "results").mkdir()
    for number in itertools.cycle(range(9)):  # each new name is remembered, so that it is reported once
        blocked = volume.collected / "results" / f"d{number}"
        blocked.touch()
        bad, fifo = volume.write(f"c1/results/d{number}/bad", "x"), volume.spool / "c1/results" / f"fifo{number}"
        os.mkfifo(fifo)
        volume.write(f"c1/results/{number}", str(number))
        yield "collected"
        blocked.unlink()
        bad.unlink(missing_ok=True)
        fifo.unlink()


def hidden_logs(delete: bool) -> Callable[[Volume], Steps]:
    """Logs that are deleted or moved while they are open, which only a descriptor reaches during the fault."""

    def steps(volume: Volume) -> Steps:
        hidden = volume.collected.with_name("collected.away")
        olddir = volume.spool / "olddir"
        olddir.mkdir()
        for number in itertools.count():
            log = volume.write(f"c1/logs/{number}.log")
            with log.open("a", buffering=1) as file:
                file.write(f"{number} 1\n")
                yield "followed"
                if delete:
                    log.unlink()
                else:
                    log.rename(olddir / log.name)
                volume.collected.rename(hidden)
                yield "fault"
                file.write(f"{number} 2\n")
                hidden.rename(volume.collected)
            yield "collected"
            assert (volume.collected / "logs" / log.name).read_text() == f"{number} 1\n{number} 2\n"
            (olddir / log.name).unlink(missing_ok=True)

    return steps


SORTS: dict[str, tuple[Callable[[Volume], Steps], set[str]]] = {
    "destination-away": (away("collected"), {"destination_unavailable"}),
    "spool-away": (away("spool"), {"spool_unavailable"}),
    "read-only": (read_only, {"destination_unavailable"}),
    "full": (full, {"destination_full"}),
    "exhausted": (exhausted, {"descriptors"}),
    "foreign": (foreign, {"destination_unavailable", "permission"}),
    "half-way": (half_way, {"destination_unavailable", "spool_unavailable", "permission"}),
    "catalog": (catalog, set()),
    "bad-names": (bad_names, set()),
    "deleted-logs": (hidden_logs(delete=True), {"destination_unavailable"}),
    "moved-logs": (hidden_logs(delete=False), {"destination_unavailable"}),
}


@pytest.mark.parametrize("sort", SORTS)
def test_a_service_that_fails_again_and_again_keeps_nothing(tmp_path: Path, sort: str) -> None:
    steps, reasons = SORTS[sort]

    def work() -> tuple[list[Counter[str]], list[int], set[str]]:
        volume = Volume(tmp_path / "spool", tmp_path / "collected")
        if sort == "full":
            mount("tmpfs", volume.collected, "tmpfs", "size=16M,nr_inodes=3000")
        if sort == "read-only":
            mount("tmpfs", volume.collected, "tmpfs")
        limit = len(os.listdir("/proc/self/fd")) + 250  # other tests of this process may have left some open
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        # A catalog is open for writing all the time, and the kernel refuses to make such a mount read-only.
        catalog = {"catalog": None} if sort == "read-only" else {}
        disturbed = Disturbed(volume, steps(volume), template="{kind}/{name}", **catalog).run()
        return disturbed.counts, disturbed.blocks, disturbed.reasons

    (early, late), blocks, found = isolated(work, LIMIT)
    assert late - early == early - late == Counter()
    assert blocks[1] - blocks[0] < 2000, f"{blocks} blocks of memory"
    assert found == reasons


def test_an_idle_collector_holds_the_same_whatever_it_has_collected(volume: Volume) -> None:
    """Neither the directories of its last batch nor what belongs to a log that has ended stays open."""
    with contextlib.closing(volume.collector()) as collector:
        volume.write("c1/results/first")
        collector.run_pass()
        before = _open()
        for number in range(20):
            volume.write(f"c{number}/results/{number}", str(number))
        with open(volume.write("c1/logs/app.log"), "a") as log:
            log.write("line\n")
            log.flush()
            collector.run_pass()
            assert list(volume.live().values()) == ["line\n"]
            following = _open()
            collector.run_pass()
            assert _open() == following
        collector.run_pass()
        assert len(volume.files()) == 22
        assert _open() == before


def test_a_closed_collector_goes_with_its_last_reference(volume: Volume) -> None:
    for number in range(3):
        volume.write(f"c1/results/{number}", str(number))
    gc.disable()
    try:
        before = _open()
        one = volume.collector()
        one.run_pass()
        known = weakref.ref(one)
        one.close()
        one.close()
        assert _open() == before
        del one
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("limit", [64, 96, 128, 256])
@pytest.mark.parametrize("layout", ["volume", "across"])
def test_few_descriptors_make_small_batches(request: pytest.FixtureRequest, layout: str, limit: int) -> None:
    """Many directories, and open logs. What is too deep for the limit is reported, and stops no other file."""
    volume: Volume = request.getfixturevalue(layout)
    for number in range(15):
        volume.write(f"c{number}/results/a/b/f", str(number))
        volume.write(f"c{number}/logs/closed.log", str(number))
    deep = volume.write("c0/results/" + "d/" * 40 + "f", "deep")
    with contextlib.ExitStack() as stack:
        for number in range(15):
            stack.enter_context((volume.spool / f"c{number}/logs/open.log").open("w"))
        ended = subprocess.run(
            [*CLI, "once", "--from", volume.spool, "--to", volume.collected, "--quiet", "0"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    wanted = Counter([str(number) for number in range(15)] * 2)
    if limit < 256:
        assert ended.returncode == 1 and "(EMFILE); raise the limit of open files" in ended.stderr, ended.stderr
        assert deep.read_text() == "deep"
    else:
        assert ended.returncode == 0, ended.stderr
        wanted["deep"] = 1
    collected = [path.read_text() for path in volume.collected.glob("results/**/*") if path.is_file()]
    collected += [path.read_text() for path in volume.collected.glob("logs/**/closed.log")]
    assert Counter(collected) == wanted


def test_too_few_descriptors_make_the_service_unready_until_a_pass_has_enough(tmp_path: Path) -> None:
    """A fault of its own, not one of the destination."""

    def work() -> list[list[str]]:
        volume = Volume(tmp_path / "spool", tmp_path / "collected")
        volume.write("c1/results/f", "x")
        volume.write("c2/results/" + "d/" * 40 + "f", "deep")
        limit = len(os.listdir("/proc/self/fd")) + 60
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        collector, board = volume.collector(), ServiceState()
        told = []
        for collected in (1, 0):
            tally = collector.run_pass()
            assert tally.collected == collected
            clear_up(board, collector, tally)
            told.append([fault.reason for fault in board.picture().faults])
            subprocess.run(["rm", "-rf", volume.spool / "c2"], check=True, timeout=LIMIT)  # with descriptors of its own
        return told

    assert isolated(work, LIMIT) == [["descriptors", "starting"], ["starting"]]
