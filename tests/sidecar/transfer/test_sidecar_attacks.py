"""What a hostile or unlucky neighbour does, and does not, get away with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sidecar.volume import CLI, Volume

import sharedvol_sidecar.fs.content as contents_module
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.spool.scanner import Candidate, Scanner


def contents(root: Path) -> list[str]:
    return sorted(path.read_text() for path in root.rglob("*") if path.is_file() and ".sharedvol" not in path.parts)


def test_a_name_that_a_scan_gives_twice_does_not_replace_a_claim(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """readdir(3) may: the writer makes the name anew while the directory is read."""
    path = volume.write("c1/results/a.json", "first")
    real = Scanner.candidates
    rename = os.rename

    def twice(self: Scanner, *args: Any) -> Iterator[Candidate]:
        for candidate in real(self, *args):
            yield candidate
            yield candidate

    def reuse(source: str, target: str, **where: int) -> None:
        rename(source, target, **where)
        if source == "a.json" and not path.exists() and not reused:
            reused.append(True)
            path.write_text("second")

    reused: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(Scanner, "candidates", twice)
        patch.setattr(os, "rename", reuse)
        volume.one_pass()
    assert reused
    volume.drain()
    assert contents(volume.collected) == ["first", "second"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_private_directory_that_others_can_write_is_not_believed(volume: Volume, mode: int) -> None:
    private = volume.spool / ".sharedvol"
    private.mkdir()
    private.chmod(mode)
    with pytest.raises(ConfigError, match="check the directory"):
        volume.collector()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it away")
def test_another_users_private_directory_is_not_believed(volume: Volume) -> None:
    private = volume.spool / ".sharedvol"
    private.mkdir(0o700)
    os.chown(private, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        volume.collector()


@pytest.mark.parametrize("root", ["spool", "collected"])
def test_a_private_directory_that_is_a_link_is_not_followed(volume: Volume, root: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (getattr(volume, root) / ".sharedvol").symlink_to(victim)
    result = subprocess.run(
        [*CLI, "once", "--from", volume.spool, "--to", volume.collected], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "not a directory" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(victim.iterdir()) == []


def test_a_fifo_in_the_place_of_the_spools_id_does_not_hang(volume: Volume) -> None:
    private = volume.spool / ".sharedvol"
    private.mkdir(0o700)
    os.mkfifo(private / "id")
    with pytest.raises(ConfigError, match="does not contain an id"):
        volume.collector()


def test_stray_files_among_the_claims_stop_nothing(volume: Volume) -> None:
    volume.one_pass()
    for stray in ("claims/9", "claims/0/9", "claims/x"):
        (volume.spool / ".sharedvol" / stray).write_text("stray")
    volume.write("c1/results/a.json", "a")
    assert volume.one_pass().collected == 1


def test_a_file_too_large_for_the_destination_does_not_stop_the_others(
    across: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    across.write("c1/results/huge", "x" * 100_000)
    across.write("c1/results/small.json", "small")
    free = os.statvfs(across.collected)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: free)  # what others write there meanwhile does not count
    tally = across.one_pass(min_free=free.f_bavail * free.f_frsize - 65_536)
    assert (tally.collected, tally.failed, tally.no_room) == (1, 1, 1)
    assert contents(across.collected) == ["small"]
    assert (across.spool / "c1" / "results" / "huge").stat().st_size == 100_000
    assert any("more than are free" in event.detail for event in across.events)


def test_a_file_that_grows_while_it_is_copied_is_put_back(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lease nobody stops its writer; the copy ends where the file ended when it was opened."""
    from sharedvol_sidecar.fs import lease

    path = across.write("c1/results/grows", "x" * 100)
    writer = path.open("a")
    real = contents_module.write_all
    sent = []

    def write_all(fd: int, data: bytes) -> None:
        writer.write("y" * 50)
        writer.flush()
        real(fd, data)
        sent.append(len(data))
        assert len(sent) < 10, "the copy does not end"

    with monkeypatch.context() as patch:
        patch.setattr(lease, "acquire", lambda fd: lease.Lease.UNAVAILABLE)
        patch.setattr(contents_module, "write_all", write_all)
        assert across.one_pass().collected == 0
    writer.close()
    assert contents(across.collected) == []
    across.drain()
    assert contents(across.collected) == ["x" * 100 + "y" * 50 * len(sent)]


def test_a_claim_of_another_kind_is_told_where_it_lies(volume: Volume) -> None:
    volume.one_pass()
    claim = volume.spool / ".sharedvol" / "claims" / "0" / "b1" / "c" / "reports"
    claim.mkdir(parents=True)
    (claim / "z").write_text("z")
    assert volume.one_pass().failed == 1
    assert any(str(claim.relative_to(volume.spool / ".sharedvol")) in event.detail for event in volume.events)
    assert (claim / "z").read_text() == "z"
