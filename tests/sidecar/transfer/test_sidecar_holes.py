"""A sparse file costs what it stores: a hole stays a hole, takes no space and no time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.sidecar.volume import Volume

from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import holes
from sharedvol_sidecar.fs.content import same
from sharedvol_sidecar.spool.layout import Origin
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.batch import MAX_BATCH_BYTES, FileBatch
from sharedvol_sidecar.transfer.item import Item

MEBIBYTE = 1 << 20


def sparse(volume: Volume, path: str, size: int, data: dict[int, bytes] | None = None) -> Path:
    made = volume.write(path)
    with open(made, "r+b") as file:
        for offset, content in (data or {}).items():
            file.seek(offset)
            file.write(content)
        file.truncate(size)
    return made


def digests(volume: Volume) -> list[str | None]:
    return [row.sha256 for row in Catalog.open("", volume.collected).rows(Filters())]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The bytes that were read."""
    real, total = os.pread, [0]

    def pread(fd: int, count: int, offset: int) -> bytes:
        total[0] += count
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    return lambda: total[0]


@pytest.mark.parametrize("name", ["results/a", "logs/a.log"])
@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_a_hollow_file_is_copied_without_its_holes(
    across: Volume, name: str, encoding: str, read: Callable[[], int]
) -> None:
    sparse(across, f"c1/{name}", 1 << 40, {0: b"begin", 1 << 39: b"middle", (1 << 40) - 3: b"end"})
    assert across.drain(compress=encoding, template="{name}").collected == 1
    (found,) = across.collected.glob("a*")
    info = found.stat()
    assert info.st_size == 1 << 40 and info.st_blocks * 512 < MEBIBYTE
    with open(found, "rb") as file:
        for offset, content in ((0, b"begin"), (1 << 39, b"middle"), ((1 << 40) - 3, b"end")):
            file.seek(offset)
            assert file.read(len(content)) == content
    assert read() < 16 * MEBIBYTE
    assert digests(across) == [None]


def test_rebuild_and_verify_read_no_hole(volume: Volume, read: Callable[[], int]) -> None:
    sparse(volume, "c1/results/a", 1 << 40, {0: b"begin"})
    assert volume.drain(template="{name}").collected == 1
    (volume.collected / ".sharedvol/catalog.db").unlink()
    for command in ("rebuild", "rebuild", "verify"):
        done = CliRunner().invoke(main, [command, "--to", str(volume.collected), "--json"])
        assert (done.exit_code, done.stderr) == (0, "")
    assert digests(volume) == [None]
    assert read() < 16 * MEBIBYTE


def test_holes_that_end_a_file_or_lie_in_it_are_kept_and_the_digest_is_of_what_it_reads_as(across: Volume) -> None:
    import hashlib

    path = sparse(across, "c1/results/a", 3 * MEBIBYTE, {0: b"x" * 4096, MEBIBYTE: b"y" * MEBIBYTE})
    content = path.read_bytes()
    across.drain(template="{name}")
    copy = across.collected / "a"
    assert copy.read_bytes() == content
    assert copy.stat().st_blocks * 512 <= 3 * MEBIBYTE // 2
    assert digests(across) == [hashlib.sha256(content).hexdigest()]


def test_a_sparse_file_needs_the_room_of_its_data(across: Volume) -> None:
    free = os.statvfs(across.collected)
    sparse(across, "c1/results/a", 2 * free.f_blocks * free.f_frsize, {0: b"x"})
    tally = across.one_pass()
    assert (tally.collected, tally.no_room) == (1, 0)


def test_hollow_files_are_collected_in_one_batch_with_those_of_others(volume: Volume) -> None:
    for number in range(8):
        sparse(volume, f"a/results/{number}", 1 << 30)
    volume.write("b/results/r.json", "hello")
    batches: list[int] = []
    collector = volume.collector()
    collector.run_pass(after_batch=lambda tally: batches.append(tally.collected))
    collector.close()
    assert batches == [9, 9]  # after the batch, and at the end


def test_a_hollow_file_spends_of_the_rate_what_it_stores(volume: Volume) -> None:
    paused: list[float] = []
    sparse(volume, "c1/results/a", 1 << 40, {0: b"x" * 1000})
    from sharedvol_sidecar.collect.collector import Collector

    collector = Collector(volume.job(rate=1e6), Events(volume.events.append), CollectorOptions(pause=paused.append))
    assert collector.run_pass().collected == 1
    collector.close()
    assert sum(paused) < 1.0


def test_the_hole_of_a_followed_log_does_not_count_as_copied(volume: Volume) -> None:
    path = sparse(volume, "c1/logs/a.log", 1 << 40, {0: b"begin"})
    with open(path, "ab"):
        assert volume.one_pass().followed < MEBIBYTE


@pytest.mark.parametrize(
    ("data", "blocks", "hollow"),
    [(1 << 30, 8, False), (4096, 8, True), (4096, 1 << 21, False)],
    ids=["compressed by the file system", "a hole", "preallocated"],
)
def test_blocks_and_data_both_decide_what_is_hollow(
    tmp_path: Path, data: int, blocks: int, hollow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "data_ranges", lambda fd, size, offset=0: iter([(0, data)]))
    info: Any = type("Status", (), {"st_size": 1 << 30, "st_blocks": blocks})
    assert holes.is_hollow(-1, info) is hollow


def test_a_batch_counts_what_is_read(volume: Volume) -> None:
    def added(path: Path) -> bool:
        batch = FileBatch(100, 4, MAX_BATCH_BYTES)
        fd = os.open(path, os.O_RDONLY)
        batch.add(Item(Candidate(None, "a", "c1/results/a", Origin("results", "c1", "a")), fd, os.fstat(fd), True))  # type: ignore[arg-type]
        os.close(fd)
        return batch.full

    assert not added(sparse(volume, "c1/results/a", 1 << 40))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({0: b"x"}, {0: b"x"}, True),
        ({0: b"x", 1 << 20: bytes(4096)}, {0: b"x"}, True),
        ({0: b"x"}, {0: b"x", 1 << 20: bytes(4096)}, True),
        ({0: b"x", 1 << 20: b"y"}, {0: b"x"}, False),
        ({0: b"x"}, {0: b"x", 1 << 20: b"y"}, False),
    ],
)
def test_sparse_files_are_compared_by_what_they_read_as(
    volume: Volume, one: dict[int, bytes], other: dict[int, bytes], equal: bool, read: Callable[[], int]
) -> None:
    first, second = (sparse(volume, f"c1/results/{n}", 1 << 40, data) for n, data in enumerate((one, other)))
    with open(first, "rb") as plain, open(second, "rb") as stored:
        assert same(plain.fileno(), stored.fileno(), "") is equal
    assert read() < 16 * MEBIBYTE
