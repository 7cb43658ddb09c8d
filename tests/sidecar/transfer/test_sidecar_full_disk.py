"""A disk that is really full: what gives relief needs nothing of what has run out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from support.processes import Child
from support.sidecar.killing import die_at
from support.sidecar.volume import CLI, Volume
from support.torture.filesystems import LoopFileSystem, mount
from support.torture.isolated import isolated
from support.torture.layouts import EVERYTHING, LIMIT, timeout

from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.config.loading import load
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.retention.pruner import apply, plan
from sharedvol_sidecar.retention.relief import make_room
from sharedvol_sidecar.retention.rules import parse_rules
from sharedvol_sidecar.service import service
from sharedvol_sidecar.service.prune_schedule import RELIEF_EVERY, PruneSchedule
from sharedvol_sidecar.service.timing import Timing
from sharedvol_sidecar.spool.put_backs import PutBacks

pytestmark = timeout

DISKS = {
    "ext4-1k": ("ext4", 4 << 20, ("-b", "1024", "-m", "0")),
    "ext4-4k": ("ext4", 6 << 20, ("-b", "4096", "-m", "0")),
    "xfs": ("xfs", None, ()),
    "tmpfs": None,
}
KEEP = "results=500K"
SIZE = 50_000


def disk(name: str, path: Path) -> Path:
    """Mount a small disk; where this machine does not allow it the test is skipped."""
    chosen = DISKS[name]
    if chosen is None:
        path.mkdir()
        mount("tmpfs", path, "tmpfs", "size=5M")
        return path
    kind, size, options = chosen
    return LoopFileSystem(kind, path, size, options).path


def fill(place: Path) -> None:
    """Until there is neither a block nor a directory more."""
    place.mkdir()
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with (place / "filler2").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    with contextlib.suppress(OSError):
        for number in range(5000):
            (place / f"d{number}").mkdir()


def full_volume(top: Path) -> tuple[Volume, list[str]]:
    """A volume on a full disk, with 40 collected files and a new one that waits; the files, the oldest first."""
    volume = Volume(top / "spool", top / "collected")
    for number in range(40):
        volume.write(f"c1/results/{number:02}", f"{number:02}" + "x" * (SIZE - 2))
    assert volume.one_pass().collected == 40
    before = catalogued(volume)
    volume.write("c1/results/new", "new")
    fill(top / "full")
    return volume, before


def served(volume: Volume, until: str, **settings: Any) -> list[dict[str, Any]]:
    """What the service logs up to an event."""
    seen: list[dict[str, Any]] = []

    def heard(logger: object, method: str, event: dict[str, Any]) -> str:
        seen.append(event)
        if event["event"] == until:
            os.kill(os.getpid(), signal.SIGTERM)
        return ""

    structlog.configure(processors=[heard], logger_factory=structlog.ReturnLoggerFactory())
    service.BACKOFF = (0.05, 0.1)
    chosen = load({"from": volume.spool, "to": volume.collected, "listen": "off", **settings}, None)
    service.Service(volume.job(), Timing(interval=0.05), chosen).run()
    return seen


def files(volume: Volume) -> set[str]:
    """The collected files, without what is hidden."""
    return {str(path.relative_to(volume.collected)) for path in volume.collected.glob("r*/**/*") if path.is_file()}


def catalogued(volume: Volume) -> list[str]:
    """The rows, the oldest first."""
    with contextlib.closing(Catalog.open("", volume.collected, create=False)) as catalog:
        return [row.path for row in catalog.rows(Filters())]


def assert_the_newest_are_kept(volume: Volume, before: list[str]) -> None:
    """As many as the rule allows, and a row for each."""
    after = catalogued(volume)
    assert set(after) == files(volume)
    old = [path for path in after if path in before]
    assert old == before[-len(old) :]
    total = sum((volume.collected / path).stat().st_size for path in after)
    assert total <= 500 << 10 < total + SIZE + 2


@pytest.mark.parametrize("name", DISKS)
def test_pruning_makes_room_though_no_pass_ends_well(tmp_path: Path, name: str) -> None:
    """One file system with the spool and the destination. The rule is all that can make room."""

    def work() -> None:
        top = disk(name, tmp_path / "disk")
        volume, before = full_volume(top)
        seen = served(volume, "collected", keep=KEEP, prune="apply")
        assert "pruned" in [event["event"] for event in seen]
        assert volume.waiting() == {} and [path for path in files(volume) if path.endswith("/new")]
        assert_the_newest_are_kept(volume, before)

    isolated(work, LIMIT)


@pytest.mark.parametrize("name", DISKS)
def test_pruning_by_hand_needs_no_room(tmp_path: Path, name: str) -> None:
    def prune(volume: Volume, *more: str) -> tuple[int, dict[str, Any]]:
        ended = subprocess.run(
            [*CLI, "prune", "--to", volume.collected, "--keep", KEEP, "--json", *more],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert ended.stderr == ""
        return ended.returncode, json.loads(ended.stdout.splitlines()[-1])["summary"]

    def work() -> None:
        top = disk(name, tmp_path / "disk")
        volume, before = full_volume(top)
        code, dry = prune(volume)
        assert code == 0 and dry["would_delete"] == 30 and files(volume) == set(before)
        code, done = prune(volume, "--apply")
        assert code == 0 and (done["deleted"], done["gone"], done["failed"]) == (30, 0, 0)
        assert_the_newest_are_kept(volume, before)

    isolated(work, LIMIT)


def test_a_dry_run_on_a_full_disk_reports_what_would_make_room(tmp_path: Path) -> None:
    def work() -> None:
        top = disk("tmpfs", tmp_path / "disk")
        volume, before = full_volume(top)
        seen = served(volume, "would_prune", keep=KEEP, prune="dry-run")
        assert [event["detail"] for event in seen if event["event"] == "would_prune"] == [
            "30 files, 1.4 MiB, would be deleted: set prune to apply"
        ]
        assert set(before) <= files(volume)

    isolated(work, LIMIT)


def test_nothing_that_the_rules_keep_is_deleted_for_room(tmp_path: Path) -> None:
    def work() -> None:
        top = disk("tmpfs", tmp_path / "disk")
        volume, before = full_volume(top)
        told: list[Event] = []
        now = [1000.0]
        pruning = PruneSchedule(("results=90d", "logs=1K"), "apply", Events(told.append), lambda: now[0])
        assert not pruning.relieve(volume.job())
        assert files(volume) == set(before) and {event.name for event in told} == {"catalog"}
        told.clear()
        now[0] += RELIEF_EVERY - 1  # a look at a million rows is not for each retry
        assert not pruning.relieve(volume.job()) and told == []

    isolated(work, LIMIT)


def test_killed_while_it_makes_room_the_next_run_finishes(tmp_path: Path) -> None:
    """At no point is there a file without a row."""
    rules = parse_rules([KEEP])

    def prune(volume: Volume) -> Iterator[object]:
        now = 2**62
        with open_root(volume.collected) as root:
            yield from make_room("", root, rules, now)
            with contextlib.closing(Catalog.open("", root, create=False)) as catalog:
                yield apply(catalog, root, plan(catalog, rules, now))

    def work() -> int:
        for round, number in enumerate(itertools.count(0, 1 if EVERYTHING else 9)):
            top = disk("tmpfs", tmp_path / f"disk{round}")
            volume, before = full_volume(top)

            def die(_: object) -> None:
                die_at(number, False)  # noqa: B023 - reaped below
                list(prune(volume))  # noqa: B023

            child = Child(die)
            status = child.wait()
            child.kill()
            with child:
                pass
            list(prune(volume))
            assert_the_newest_are_kept(volume, before)
            if status == 0:
                return round
            assert status == -signal.SIGKILL
        raise AssertionError("endless")

    assert isolated(work, LIMIT) > 3


SPOOLS = {
    "ext4-1k": ("ext4", 8 << 20, ("-b", "1024", "-m", "0")),
    "ext4-4k": ("ext4", 8 << 20, ("-b", "4096", "-m", "0")),
    "ext4-inodes": ("ext4", 16 << 20, ("-b", "4096", "-m", "0", "-N", "300")),
    "xfs": ("xfs", None, ()),
    "tmpfs": "size=8M,nr_inodes=1000",
    "tmpfs-inodes": "size=64M,nr_inodes=300",
}


def spool_disk(name: str, path: Path) -> Path:
    chosen = SPOOLS[name]
    if isinstance(chosen, str):
        path.mkdir()
        mount("tmpfs", path, "tmpfs", chosen)
        return path
    kind, size, options = chosen
    return LoopFileSystem(kind, path, size, options=options).path


def waiting_on_a_full_spool(name: str, top: Path, unit: str = "c1") -> tuple[Volume, Counter[str]]:
    """A spool that a sidecar has seen once, and that is full; what is to be collected from it."""
    volume = Volume(spool_disk(name, top / "disk") / "spool", top / "collected")
    assert volume.one_pass().collected == 0
    for number in range(100):
        volume.write(f"{unit}/results/{'a/b/' * (number % 2)}{number}", str(number) + " " * 20_000)
    wanted = Counter(volume.waiting().values())
    fill(volume.spool.parent / "full")
    for number in itertools.count():  # and the last inode
        try:
            volume.write(f"{unit}/results/empty{number}")
        except OSError:
            break
        wanted[""] += 1
    return volume, wanted


@pytest.mark.parametrize("name", SPOOLS)
def test_a_full_spool_is_collected(tmp_path: Path, name: str) -> None:
    """Neither a claim nor a container's lock can be made, and the destination has room."""

    def work() -> None:
        volume, wanted = waiting_on_a_full_spool(name, tmp_path)
        while volume.one_pass().collected:
            pass
        assert volume.waiting() == {} and volume.claims() == [] and volume.bag() == wanted

    isolated(work, LIMIT)


def test_killed_on_a_full_spool_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Sidecars are killed again and again, each a little later, and use up no spare."""

    def work() -> int:
        volume, wanted = waiting_on_a_full_spool("ext4-1k", tmp_path)
        for round, number in enumerate(itertools.count(0, 1 if EVERYTHING else 7)):

            def die(_: object) -> None:
                collector = volume.collector()
                die_at(number, False)  # noqa: B023 - reaped below
                collector.run_pass()
                collector.close()

            child = Child(die)
            status = child.wait()
            child.kill()
            with child:
                pass
            if status == 0 and not volume.waiting():
                assert volume.claims() == [] and volume.bag() == wanted
                return round
            assert status == -signal.SIGKILL
        raise AssertionError("endless")

    assert isolated(work, LIMIT) > 3


def test_a_spool_that_is_full_before_a_sidecar_ever_ran_says_what_to_do(tmp_path: Path) -> None:
    def work() -> list[dict[str, Any]]:
        volume = Volume(spool_disk("ext4-4k", tmp_path / "disk") / "spool", tmp_path / "collected")
        volume.write("c1/results/1", "1")
        fill(volume.spool.parent / "full")
        return served(volume, "fault")

    fault = isolated(work, LIMIT)[0]
    assert fault["reason"] == "spool_full" and "make room there once, 100 KiB are enough" in fault["error"]


def test_spares_are_no_claims_and_are_used_again(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "spool", tmp_path / "collected")
    for number in range(3):
        volume.write(f"c{number}/results/{'d/' * 20}f", str(number))
        assert volume.one_pass().collected == 1
        spares = sorted((volume.spool / ".sharedvol/claims/0").iterdir())
        assert all(spare.name.startswith(".spare-") and not list(spare.iterdir()) for spare in spares)
        assert len(spares) in (8, 23)  # as many as the deepest path of this sidecar needed


def empty(place: Path) -> None:
    """Give back the room that `fill` took."""
    for entry in place.iterdir():
        entry.rmdir() if entry.is_dir() else entry.unlink()


def test_a_sidecar_that_started_on_a_full_disk_keeps_its_names_once_there_is_room(tmp_path: Path) -> None:
    """Another one with other settings finishes what it claimed, by the names that it gave."""

    def work() -> None:
        volume = Volume(disk("ext4-1k", tmp_path / "disk") / "spool", tmp_path / "collected")
        volume.write("c1/results/before", "x")
        assert volume.one_pass(template="before/{base}").collected == 1
        fill(tmp_path / "disk/full")
        collector = volume.collector(template="{kind}/{base}")
        collector.run_pass()
        empty(tmp_path / "disk/full")
        volume.write("c1/results/r.json", "r")

        def die(*_: object) -> None:
            raise SystemExit

        collector.parts.catalog.add = die  # type: ignore[method-assign]
        with pytest.raises(SystemExit):
            collector.run_pass()
        collector.close()
        assert volume.claims() != []
        volume.drain(template="new/{base}")
        assert volume.names() == ["before/before", "results/r.json"]

    isolated(work, LIMIT)


def test_marks_of_files_that_were_put_back_are_seen_by_others_once_there_is_room(tmp_path: Path) -> None:
    def work() -> None:
        with open_root(disk("ext4-1k", tmp_path / "disk")) as root:
            fill(tmp_path / "disk/full")
            first = PutBacks(root)
            first.add(1)
            assert 1 in first
            empty(tmp_path / "disk/full")
            first.add(2)
            other = PutBacks(root)
            assert 2 in first and 2 in other
            first.close()
            other.close()

    isolated(work, LIMIT)


def test_the_marks_that_a_full_disk_does_not_take_are_bounded(tmp_path: Path) -> None:
    def work() -> None:
        with open_root(disk("ext4-1k", tmp_path / "disk")) as root:
            fill(tmp_path / "disk/full")
            marks = PutBacks(root)
            for inode in range(100_000):
                marks.add(inode)
            kept = [inode for inode in range(100_000) if inode in marks]
            assert kept == list(range(100_000 - len(kept), 100_000)) and 10_000 < len(kept) < 100_000
            marks.close()

    isolated(work, LIMIT)
