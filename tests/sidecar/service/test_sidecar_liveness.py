"""Long work on one file gives signs of life, so many that a health check never takes it for a hang."""

from __future__ import annotations

import os

import pytest
from support.processes import Child
from support.sidecar.volume import Volume

import sharedvol_sidecar.fs.content as contents
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow import copier as follow
from sharedvol_sidecar.transfer import contents as syncing
from sharedvol_sidecar.transfer.release import ClaimRelease

CHUNK = 1000
CHUNKS = 300


class Beats:
    """Counts the signs of life."""

    count = 0

    def beat(self) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK", CHUNK)
    monkeypatch.setattr(contents, "_AT_ONCE", CHUNK)
    monkeypatch.setattr(contents, "SYNC_EVERY", 10 * CHUNK)
    monkeypatch.setattr(syncing, "SYNC_EVERY", 10 * CHUNK)
    monkeypatch.setattr(follow, "_AT_A_TIME", CHUNK)


def beats_of_a_pass(volume: Volume, **changes: object) -> int:
    beats = Beats()
    collector = Collector(volume.job(**changes), Events(volume.events.append), CollectorOptions(liveness=beats))
    collector.run_pass()
    collector.close()
    return beats.count


def write_long(volume: Volume, path: str) -> None:
    volume.write(path, os.urandom(CHUNKS * CHUNK // 2).hex())


def test_the_digest_of_a_long_file_beats_with_each_chunk(volume: Volume) -> None:
    write_long(volume, "c1/results/a")
    assert beats_of_a_pass(volume) >= CHUNKS


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_a_long_copy_beats_with_each_chunk(across: Volume, encoding: str) -> None:
    write_long(across, "c1/logs/a.log")
    assert beats_of_a_pass(across, compress=encoding) >= CHUNKS


def test_a_long_log_that_is_followed_beats_with_each_part(volume: Volume) -> None:
    write_long(volume, "c1/logs/a.log")
    with open(volume.spool / "c1/logs/a.log", "a"):
        assert beats_of_a_pass(volume) >= CHUNKS
    assert volume.live()


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_long_copy_of_a_dead_mover_is_compared_with_beats(across: Volume, encoding: str) -> None:
    write_long(across, "c1/logs/a.log")

    def die(_: object) -> None:
        ClaimRelease._remove = lambda self, done: os.kill(os.getpid(), 9)  # type: ignore
        across.one_pass(compress=encoding)

    with Child(die) as child:
        assert child.wait() == -9
        child.kill()
    assert across.staged()
    assert beats_of_a_pass(across, compress=encoding) >= CHUNKS
    assert across.claims() == []


def test_many_small_files_beat_one_by_one(volume: Volume) -> None:
    for number in range(50):
        volume.write(f"c1/results/{number}", "x")
    assert beats_of_a_pass(volume) >= 100


def test_a_long_file_is_synced_in_slices_with_beats_between(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    write_long(volume, "c1/results/a")
    beats, seen = Beats(), []
    real = syncing.sync_range

    def sync_range(fd: int, offset: int, length: int) -> None:
        seen.append((offset, beats.count))
        real(fd, offset, length)

    monkeypatch.setattr(syncing, "sync_range", sync_range)
    collector = Collector(volume.job(), Events(volume.events.append), CollectorOptions(liveness=beats))
    collector.run_pass()
    collector.close()
    assert [offset for offset, _ in seen] == list(range(0, (CHUNKS - 10) * CHUNK, 10 * CHUNK))
    counts = [count for _, count in seen]
    assert counts == sorted(set(counts))


def test_a_long_copy_is_synced_in_slices(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    write_long(across, "c1/results/a")
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    beats_of_a_pass(across)
    assert synced == list(range(10 * CHUNK, CHUNKS * CHUNK + 1, 10 * CHUNK))
