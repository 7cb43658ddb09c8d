"""Writers that come back while their file is moved: it is put back before they write a byte."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, wait_until
from support.sidecar.volume import Volume

import sharedvol_sidecar.fs.content as contents
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.release import ClaimRelease


def late_writer(path: str, text: str, root: Path) -> Child:
    """Opens what it had resolved before the claim (an O_PATH descriptor is that) and appends."""
    resolved = os.open(path, os.O_PATH)

    def write(connection: Any) -> None:
        # The mover's descriptors were inherited, and its leases with them: they would never be given back.
        for number in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, resolved, connection.fileno()}:
            with contextlib.suppress(OSError):
                os.close(number)
        connection.send("here")
        fd = os.open(f"/proc/self/fd/{resolved}", os.O_WRONLY | os.O_APPEND)  # waits for the lease
        connection.send([name for name in os.listdir(root) if not name.startswith(".")])
        os.write(fd, text.encode())
        os.close(fd)

    child = Child(write)
    os.close(resolved)
    child.receive()
    return child


@pytest.mark.parametrize("where", ["volume", "across"])
def test_late_writer_finds_the_file_put_back(
    where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume: Volume = request.getfixturevalue(where)
    path = volume.write("c1/results/a", "x")
    collector = volume.collector(template="{name}")
    writers: list[Child] = []
    named: list[bool] = []
    real = collector.parts.destination.sync

    def sync() -> None:
        named.append((volume.collected / "a").exists())
        claim = next((volume.spool / ".sharedvol" / "claims").rglob("a"))
        writers.append(late_writer(str(claim), "y", volume.collected))
        _wait_broken(claim)
        real()

    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.destination, "sync", sync)
        tally = collector.run_pass()
    assert (tally.put_back, tally.collected, named) == (1, 0, [True])
    with writers[0] as writer:
        assert writer.receive() == []  # no final name when it was let in
    assert path.read_text() == "xy"
    assert collector.run_pass().collected == 1
    collector.close()
    assert volume.files() == {"a": "xy"}
    assert volume.claims() == [] and volume.staged() == []


def _wait_broken(path: Path) -> None:
    """Until the writer waits: proc_locks(5) shows its lease as being broken."""
    mark = f":{path.stat().st_ino} "

    def broken() -> bool:
        lines = Path("/proc/locks").read_text().splitlines()
        return any(mark in line and "LEASE" in line and "BREAKING" in line for line in lines)

    wait_until(broken, "a writer that waits for the lease")


def test_late_writer_between_confirmations_of_a_batch(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last files of a batch are asked about just before they are let go, not when the first is."""
    for name in ("a", "b"):
        volume.write(f"c1/results/{name}", name)
    collector = volume.collector(template="{name}")
    writers: list[Child] = []
    real = ClaimRelease._confirm

    def confirm(self: ClaimRelease, item: Item) -> bool:
        answer = real(self, item)
        if not writers:
            other = next(each for each in "ab" if each != item.candidate.name)
            claim = next((volume.spool / ".sharedvol" / "claims").rglob(other))
            monkeypatch.setattr(Item, "close", closing(claim, Item.close))
        return answer

    def closing(claim: Path, real_close: Any) -> Any:
        def close(item: Item) -> None:
            if not writers:
                writers.append(late_writer(str(claim), "late", volume.collected))
                _wait_broken(claim)
            real_close(item)

        return close

    monkeypatch.setattr(ClaimRelease, "_confirm", confirm)
    tally = collector.run_pass()
    assert (tally.collected, tally.put_back) == (1, 1)
    with writers[0] as writer:
        assert len(writer.receive()) == 1
    collector.close()
    volume.drain(template="{name}")
    assert sorted(len(text) for text in volume.files().values()) == [1, 5]


def test_writer_that_comes_back_while_it_is_copied(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = across.write("c1/results/a", "x" * 100)
    collector = across.collector(template="{name}")
    writers: list[Child] = []
    real = contents.write_all

    def write_all(fd: int, data: bytes) -> None:
        if not writers:
            claim = next((across.spool / ".sharedvol" / "claims").rglob("a"))
            writers.append(late_writer(str(claim), "y", across.collected))
            _wait_broken(claim)
        real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(contents, "write_all", write_all)
        tally = collector.run_pass()
    assert (tally.put_back, tally.collected) == (1, 0)
    with writers[0] as writer:
        assert writer.receive() == []
    assert path.read_text() == "x" * 100 + "y"
    assert collector.run_pass().collected == 1
    collector.close()
    assert across.bag() == Counter(["x" * 100 + "y"])
    assert across.staged() == []


def test_claim_that_a_late_writer_holds_when_its_mover_died_is_hidden(volume: Volume) -> None:
    """Published but not let go: while somebody writes to it, it has no final name."""
    volume.write("c1/results/a", "x")

    def die(_: Any) -> None:
        ClaimRelease._remove = lambda self, done: os.kill(os.getpid(), 9)  # type: ignore
        volume.one_pass(template="{name}")

    child = Child(die)
    assert child.wait() == -9
    child.kill()
    with child:
        assert volume.files() == {"a": "x"}
    (claim,) = (volume.spool / ".sharedvol" / "claims").rglob("a")
    with open(claim, "a") as late:
        assert volume.one_pass(template="{name}").writing == 1
        assert volume.files() == {}
        late.write("y")
    volume.drain(template="{name}")
    assert volume.files() == {"a": "xy"}


@pytest.mark.parametrize("reuse", ["rename", "unlink"])
def test_name_reused_between_open_and_claim(volume: Volume, reuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was asked about the new file: it goes back, and is judged by itself."""
    path = volume.write("c1/results/a", "old")
    real = os.rename
    swapped: list[bool] = []
    held: list[Any] = []

    def rename(source: str, target: str, **options: Any) -> None:
        if not swapped and options:
            swapped.append(True)
            if reuse == "unlink":
                path.unlink()
            held.append(open(path.with_name(".new"), "w"))  # noqa: SIM115 - held open over a pass
            held[0].write("new")
            os.replace(path.with_name(".new"), path)
        real(source, target, **options)

    collector = volume.collector()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert collector.run_pass().collected == 0
    assert swapped and path.exists()
    assert collector.run_pass().writing == 1
    held[0].close()
    assert collector.run_pass().collected == 1
    collector.close()
    assert volume.bag() == Counter(["new"])


def test_file_deleted_by_its_writer_before_the_claim_is_gone(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volume.write("c1/results/a", "x")
    real = Claimer.claim

    def claim(self: Claimer, *args: Any) -> bool:
        path.unlink()
        return real(self, *args)

    monkeypatch.setattr(Claimer, "claim", claim)
    tally = volume.one_pass()
    assert (tally.collected, tally.failed) == (0, 0)
    assert volume.files() == {} and volume.claims() == []


@pytest.mark.parametrize("renameat2", [True, False])
def test_put_back_when_the_name_is_taken_keeps_both(
    volume: Volume, renameat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.sidecar.killing import LibC

    from sharedvol_sidecar.fs import directory as directories

    monkeypatch.setattr(directories, "_libc", LibC(directories._libc, renameat2=renameat2))
    path = volume.write("c1/results/a", "first")
    collector = volume.collector(template="{name}")

    def broken(fd: int) -> bool:
        path.write_text("second")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(lease, "is_intact", broken)
        assert collector.run_pass().put_back == 1
    assert path.read_text() == "second" and volume.files() == {}
    assert len(volume.claims()) == 1
    for _ in range(2):
        collector.run_pass()
    collector.close()
    assert volume.bag() == Counter(["first", "second"])
    assert volume.claims() == []


@pytest.mark.parametrize("where", ["volume", "across"])
def test_a_writer_that_comes_while_the_live_copy_is_removed_finds_its_log_put_back(
    where: str, request: pytest.FixtureRequest
) -> None:
    """Else it would write into the collected file, or into one without a name."""
    volume: Volume = request.getfixturevalue(where)
    path = volume.write("c1/logs/app.log", "first line\n")
    collector = volume.collector(template="{name}")
    writers: list[Child] = []
    unfollow = collector.parts.copies.unfollow

    def slowly(id: str) -> None:
        unfollow(id)
        claim = next((volume.spool / ".sharedvol" / "claims").rglob("app.log"))
        writers.append(late_writer(str(claim), "second line\n", volume.collected))
        _wait_broken(claim)

    with open(path, "a"):
        collector.run_pass()
    assert list(volume.live().values()) == ["first line\n"]
    collector.parts.copies.unfollow = slowly
    tally = collector.run_pass()
    collector.parts.copies.unfollow = unfollow
    assert (tally.put_back, tally.collected) == (1, 0)
    with writers[0] as writer:
        assert writer.receive() == []
    collector.close()
    volume.drain(template="{name}")
    assert volume.files() == {"app.log": "first line\nsecond line\n"}
    assert volume.live() == {} and volume.claims() == [] and volume.staged() == []
