"""A rotation that compresses followed logs: every line is there, some are there twice, and the operator is warned."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from support.sidecar.volume import Volume

from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.deduplicator import Deduplicator


def rotate(log: Path, packed: str) -> None:
    """What logrotate does with ``create`` and ``compress``: rename, create, compress, delete."""
    rotated = log.with_name("rotated")
    log.rename(rotated)
    log.touch()
    target = log.parent / packed
    target.parent.mkdir(exist_ok=True)
    with gzip.open(target, "wb") as file:
        file.write(rotated.read_bytes())
    rotated.unlink()


def warnings_of(volume: Volume) -> list[str]:
    return [event.path for event in volume.told("compressed_copy")]


@pytest.mark.parametrize(
    "packed",
    [
        "app.log.gz",
        "app.log.1.gz",
        "app.log-20260131.gz",
        "app.log-2026-01-31T14:25.gz",
        "app.log.1769870000.zst",
        "app-20260131.log.xz",
        "app.1.log.bz2",
        "old/app.log.2.gz",
    ],
)
def test_a_compressed_copy_of_a_followed_log_is_collected_and_warned_of(volume: Volume, packed: str) -> None:
    path = volume.write("c1/logs/app.log", "line 1\n")
    collector = volume.collector()
    with path.open("a"):
        collector.run_pass()
        assert len(volume.live()) == 1 and warnings_of(volume) == []
    rotate(path, packed)
    with path.open("a"):
        for _ in range(3):
            collector.run_pass()
    collector.close()
    assert warnings_of(volume) == ["c1/logs/app.log"]
    (event,) = volume.told("compressed_copy")
    assert "--compress" in event.detail and "nocompress" in event.detail
    found = [file for file in volume.collected.rglob("*") if file.is_file() and file.name == Path(packed).name]
    assert [gzip.decompress(file.read_bytes()) for file in found] == [b"line 1\n"]


def test_each_log_is_warned_of_once(volume: Volume) -> None:
    collector = volume.collector()
    logs = [volume.write(f"c1/logs/{name}.log", f"{name}\n") for name in ("app", "web")]
    for turn in range(3):
        with logs[0].open("a"), logs[1].open("a"):
            collector.run_pass()
        for log in logs:
            rotate(log, f"{log.name}.{turn}.gz")
            log.write_text(f"{turn}\n")
    collector.run_pass()
    collector.close()
    assert sorted(warnings_of(volume)) == ["c1/logs/app.log", "c1/logs/web.log"]


@pytest.mark.parametrize("rotated", ["app.log.1", "app.log-20260131"])
def test_a_log_that_was_rotated_before_it_was_followed_is_named_by_its_own_name(volume: Volume, rotated: str) -> None:
    paths = [volume.write(f"c1/logs/{name}", f"{name}\n") for name in ("app.log", rotated)]
    collector = volume.collector()
    with paths[0].open("a"), paths[1].open("a"):
        collector.run_pass()
    rotate(paths[1], f"{rotated}.gz")
    rotate(paths[0], "app.log.2.gz")
    collector.run_pass()
    collector.close()
    assert warnings_of(volume) == ["c1/logs/app.log"]


def test_a_log_that_is_followed_no_more_is_remembered(volume: Volume) -> None:
    path = volume.write("c1/logs/app.log", "line 1\n")
    collector = volume.collector()
    with path.open("a"):
        collector.run_pass()
    collector.run_pass()
    assert volume.live() == {} and not path.exists()
    volume.write("c1/logs/app.log.1.gz", "packed")
    collector.run_pass()
    collector.close()
    assert warnings_of(volume) == ["c1/logs/app.log"]


@pytest.mark.parametrize(
    "other",
    [
        "c1/logs/app.log.1",
        "c1/logs/application.log.gz",
        "c1/logs/app.login.gz",
        "c1/logs/app.logs.1.gz",
        "c1/logs/1.gz",
        "c1/logs/.gz",
        "c1/logs/app.log.old.gz",
        "c1/results/app.log.1.gz",
        "c2/logs/app.log.1.gz",
        "c1/logs/sub/web.log.1.gz",
    ],
)
def test_other_files_are_not_warned_of(volume: Volume, other: str) -> None:
    path = volume.write("c1/logs/app.log", "line 1\n")
    volume.write("c2/logs/web.log", "closed\n")
    volume.write(other, "other")
    collector = volume.collector()
    with path.open("a"):
        collector.run_pass()
        collector.run_pass()
    collector.close()
    assert warnings_of(volume) == []


def test_files_that_are_not_followed_are_not_warned_of(volume: Volume) -> None:
    volume.write("c1/logs/app.log", "line 1\n")
    volume.write("c1/logs/app.log.1.gz", "packed")
    assert volume.one_pass().collected == 2
    assert warnings_of(volume) == []


def test_the_warning_is_a_problem_that_is_logged_once() -> None:
    told: list[Event] = []
    once = Deduplicator(told.append)
    events = Events(once)
    events.compressed_copy("c1/logs/app.log", "x")
    events.compressed_copy("c1/logs/app.log", "x")
    assert len(told) == 1
