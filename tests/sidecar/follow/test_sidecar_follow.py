"""Logs that stay open: followed byte for byte, through rotation, cuts, deletion and kills; and how they end."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from support.sidecar.volume import Volume

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.follow.copier import LogCopier
from sharedvol_sidecar.follow.live_copies import LiveCopies


class Writer:
    """A log that is kept open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.fd = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def log(volume: Volume) -> Iterator[Writer]:
    writer = Writer(volume.spool / "c1" / "logs" / "app.log")
    yield writer
    writer.close()


@pytest.fixture
def collector(volume: Volume) -> Iterator[Collector]:
    found = volume.collector(template="{name}")
    yield found
    found.close()


def names(volume: Volume) -> list[str]:
    return sorted(volume.files())


def test_grows_as_the_log_grows_and_ends_as_the_log(volume: Volume, log: Writer, collector: Collector) -> None:
    log.write("one\n")
    assert collector.run_pass().followed == 4
    log.write("two\nha")
    assert collector.tick().followed == 6
    assert list(volume.live().values()) == ["one\ntwo\nha"]
    assert volume.files() == {}
    log.write("lf\n")
    log.close()
    tally = collector.run_pass()
    assert (tally.collected, tally.sealed) == (1, 1)
    assert volume.files() == {"app.log": "one\ntwo\nhalf\n"}
    assert volume.live() == {} and volume.waiting() == {}
    assert len(collector.parts.follower) == 0


def test_the_size_of_the_copy_is_the_checkpoint_of_the_next_sidecar(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    assert volume.one_pass(template="{name}").followed == 4
    (live,) = volume.collected.rglob("*.live")
    with live.open("r+") as file:
        file.truncate(2)  # as if killed in the middle of a write
    log.write("two\n")
    assert volume.one_pass(template="{name}").followed == 6
    assert list(volume.live().values()) == ["one\ntwo\n"]


def test_rotation_by_renaming_goes_on_with_the_same_copy(volume: Volume, log: Writer, collector: Collector) -> None:
    log.write("one\n")
    collector.run_pass()
    log.path.rename(log.path.with_name("app.log.1"))
    fresh = Writer(log.path)
    fresh.write("fresh\n")
    log.write("two\n")
    collector.run_pass()
    assert sorted(volume.live().values()) == ["fresh\n", "one\ntwo\n"]
    log.close()
    fresh.close()
    collector.run_pass()
    assert volume.files() == {"app.log": "fresh\n", "app.log.1": "one\ntwo\n"}


@pytest.mark.parametrize("after", ["", "x\n", "longer than it was before, with other content\n" * 200])
def test_copytruncate_keeps_what_was_seen(volume: Volume, log: Writer, collector: Collector, after: str) -> None:
    log.write("before\n" * 100)
    collector.run_pass()
    os.ftruncate(log.fd, 0)
    log.write(after)
    collector.tick()
    collector.run_pass()
    assert "before\n" * 100 in volume.files().values()
    log.close()
    collector.run_pass()
    assert sorted(volume.files().values()) == sorted(["before\n" * 100, after])
    assert volume.live() == {}


def test_cut_and_closed_before_it_is_looked_at_keeps_what_was_seen(
    volume: Volume, log: Writer, collector: Collector
) -> None:
    log.write("before\n")
    collector.run_pass()
    os.ftruncate(log.fd, 0)
    log.close()
    collector.run_pass()
    assert sorted(volume.files().values()) == ["", "before\n"]


def test_cut_while_it_is_copied_leaves_no_mixture(
    volume: Volume, log: Writer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write("before\n" * 10)
    collector.run_pass()
    log.write("more\n" * 10)
    real = LogCopier.copy

    def cut(self: LiveCopies, *args: object) -> int:
        monkeypatch.undo()
        os.ftruncate(log.fd, 0)
        log.write("after!\n" * 40)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LogCopier, "copy", cut)
    collector.tick()
    assert volume.files() == {"app.log": "before\n" * 10}
    assert list(volume.live().values()) == ["after!\n" * 40]


def test_deleted_log_is_read_as_long_as_its_writer_has_it(volume: Volume, log: Writer, collector: Collector) -> None:
    log.write("one\n")
    collector.run_pass()
    log.path.unlink()
    log.write("two\n")
    collector.run_pass()
    assert list(volume.live().values()) == ["one\ntwo\n"] and volume.files() == {}
    log.write("three\n")
    log.close()
    collector.run_pass()
    assert volume.files() == {"app.log": "one\ntwo\nthree\n"}
    assert volume.live() == {} and len(collector.parts.follower) == 0


def test_deleted_while_no_sidecar_ran_keeps_what_was_seen(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    volume.one_pass(template="{name}")
    log.path.unlink()
    log.close()
    collector = volume.collector(template="{name}")
    collector.run_pass()
    assert volume.files() == {}  # a rename during the scan hides a file from it: once is not enough
    collector.run_pass()
    collector.close()
    assert volume.files() == {"app.log": "one\n"}
    assert volume.live() == {}


def test_a_new_file_with_the_inode_of_a_deleted_one_is_another_log(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    volume.one_pass(template="{name}")
    inode = os.fstat(log.fd).st_ino
    log.path.unlink()
    log.close()
    for number in range(2000):  # in the same directory: there the file system looks for a free one first
        spare = log.path.with_name(f".{number}")
        spare.touch()
        if spare.stat().st_ino == inode:
            spare.rename(log.path)
            break
    else:
        pytest.skip("the file system did not use the inode again")
    again = Writer(log.path)
    again.write("other\n")
    for _ in range(3):
        volume.one_pass(template="{name}")
    collector = volume.collector(template="{name}")
    for _ in range(3):
        collector.run_pass()
    assert "one\n" in volume.files().values()
    assert list(volume.live().values()) == ["other\n"]
    again.close()
    collector.run_pass()
    collector.close()
    assert sorted(volume.files().values()) == ["one\n", "other\n"]


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_finished_logs_are_compressed_and_results_are_not(volume: Volume, log: Writer, compress: str) -> None:
    log.write("line\n" * 10_000)
    options = {"template": "{kind}/{base}", "compress": compress}
    volume.one_pass(**options)
    log.close()
    volume.write("c1/results/a.json", "{}")
    volume.write("c1/logs/old.log.gz", "packed already")
    volume.drain(**options)
    suffix = {"gzip": ".gz", "zstd": ".zst"}[compress]
    stored = (volume.collected / "logs" / f"app.log{suffix}").read_bytes()
    text = (
        gzip.decompress(stored)
        if compress == "gzip"
        else zstandard.ZstdDecompressor().decompressobj().decompress(stored)
    )
    assert text == b"line\n" * 10_000
    assert (volume.collected / "logs" / "old.log.gz").read_text() == "packed already"
    assert (volume.collected / "results" / "a.json").read_text() == "{}"
    assert volume.live() == {} and volume.staged() == []


def test_a_cut_log_is_compressed_too(volume: Volume, log: Writer) -> None:
    log.write("line\n" * 1000)
    volume.one_pass(template="{name}", compress="gzip")
    os.ftruncate(log.fd, 0)
    volume.one_pass(template="{name}", compress="gzip")
    assert gzip.decompress((volume.collected / "app.log.gz").read_bytes()) == b"line\n" * 1000
    assert volume.staged() == []


def test_without_leases_a_silent_log_is_followed_until_it_is_silent_for_long(
    volume: Volume, log: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharedvol_sidecar.fs import lease

    monkeypatch.setattr(lease, "acquire", lambda fd: lease.Lease.UNAVAILABLE)
    log.write("one\n")
    assert volume.one_pass(template="{name}", seal_after=3600.0).followed == 4
    assert volume.files() == {}
    log.write("two\n")
    assert volume.one_pass(template="{name}", seal_after=3600.0).followed == 4
    log.close()
    assert volume.one_pass(template="{name}", seal_after=0.0).collected == 1
    assert volume.files() == {"app.log": "one\ntwo\n"}


def test_two_sidecars_follow_one_log_in_turn(volume: Volume, log: Writer) -> None:
    first, second = volume.collector(template="{name}"), volume.collector(template="{name}")
    for number in range(10):
        log.write(f"{number}\n")
        assert (first, second)[number % 2].run_pass().followed == 2
        assert (first, second)[number % 2].tick().followed == 0
    os.ftruncate(log.fd, 0)
    log.write("anew\n")
    second.tick()
    first.run_pass()
    log.close()
    second.run_pass()
    first.close()
    second.close()
    assert sorted(volume.files().values()) == ["".join(f"{n}\n" for n in range(10)), "anew\n"]
    assert volume.live() == {}


def test_a_kind_that_is_not_followed_stays_until_it_is_closed(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    tally = volume.one_pass(follow=())
    assert (tally.followed, tally.writing) == (0, 1)
    assert volume.live() == {}


def test_below_the_floor_of_free_space_logs_wait(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    tally = volume.one_pass(min_free=2**60)
    assert (tally.followed, tally.no_room) == (0, 1)
    assert volume.one_pass().followed == 4


def test_a_damaged_record_of_a_log_stops_nothing(volume: Volume, log: Writer) -> None:
    log.write("one\n")
    volume.one_pass(template="{name}")
    (record,) = (volume.collected / ".sharedvol" / "follow").rglob("*.json")
    assert json.loads(record.read_text())["source"] == "c1/logs/app.log"
    record.write_text("{")
    volume.write("c1/results/a.json", "a")
    assert volume.one_pass(template="{base}").collected == 1
    assert volume.told("failed")
