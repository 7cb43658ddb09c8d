"""The backlog of one container does not hold up the files of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import Child
from support.sidecar.volume import Volume

import sharedvol_sidecar.collect.collector as collector_module
import sharedvol_sidecar.spool.visits as visits
import sharedvol_sidecar.transfer.batch as batches
from sharedvol_sidecar.collect import wiring
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.spool.container_locks import ContainerLocks

BACKLOG = 200
BATCH = 10


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH", BATCH)


def flood(volume: Volume, container: str = "evil", count: int = BACKLOG) -> None:
    for number in range(count):
        volume.write(f"{container}/results/{number:04}", "x")


def after_each_move(volume: Volume, work: Callable[[int], object], **changes: object) -> PassCounts:
    """Do something after each move of a pass; it is given the number of moves so far."""
    moves = 0

    def after_batch(tally: PassCounts) -> None:
        nonlocal moves
        moves += 1
        work(moves)

    collector = volume.collector(**changes)
    try:
        return collector.run_pass(after_batch=after_batch)
    finally:
        collector.close()


def left_of(volume: Volume, container: str) -> list[Path]:
    return list((volume.spool / container).glob("*/*"))


def test_a_file_that_appears_during_a_backlog_is_collected_after_one_more_batch(volume: Volume) -> None:
    (volume.spool / "good/results").mkdir(parents=True)
    flood(volume)
    waited: list[int] = []

    def work(move: int) -> None:
        if move == 1:
            volume.write("good/results/new", "good")
        elif not waited and not left_of(volume, "good"):
            waited.append(move)

    tally = after_each_move(volume, work)
    assert tally.collected == BACKLOG + 1
    assert waited and waited[0] <= 3


def test_every_container_has_a_turn_after_each_batch_of_a_backlog(volume: Volume) -> None:
    flood(volume)
    for number in range(30):
        volume.write(f"good{number}/results/a", str(number))
    left: list[tuple[int, int]] = []

    def work(move: int) -> None:
        good = sum(len(left_of(volume, f"good{number}")) for number in range(30))
        left.append((good, len(left_of(volume, "evil"))))

    after_each_move(volume, work)
    evil_left_when_done = next(evil for good, evil in left if good == 0)
    assert evil_left_when_done >= BACKLOG - 6 * BATCH


def test_large_files_of_one_container_give_the_others_a_turn(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "MAX_BATCH_BYTES", 1000)
    for number in range(20):
        volume.write(f"evil/results/{number}", "x" * 5000)
    (volume.spool / "good/results").mkdir(parents=True)

    def work(move: int) -> None:
        if move == 1:
            volume.write("good/results/new", "good")
        if move == 4:
            assert left_of(volume, "good") == [] and len(left_of(volume, "evil")) > 10

    assert after_each_move(volume, work).collected == 21


def test_files_that_may_not_move_yet_do_not_hold_up_the_others(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "SCANNED", 20)
    kept = [os.open(volume.write(f"evil/results/{number}", "x"), os.O_WRONLY) for number in range(BACKLOG)]
    (volume.spool / "good/results").mkdir(parents=True)
    volume.write("good/results/old", "old")
    looked: list[int] = []
    collector = volume.collector()
    real = collector.parts.admission.admit

    def admit(candidate, *args):  # type: ignore[no-untyped-def]
        looked.append(candidate.origin.container == "evil")
        if len(looked) == 1:
            volume.write("good/results/new", "new")
        return real(candidate, *args)

    monkeypatch.setattr(collector.parts.admission, "admit", admit)
    order: list[int] = []
    tally = collector.run_pass(after_batch=lambda tally: order.append(len(looked)))
    collector.close()
    for fd in kept:
        os.close(fd)
    assert left_of(volume, "good") == []
    assert order and order[0] < BACKLOG
    assert tally.writing == BACKLOG


def test_what_is_left_is_counted_once(volume: Volume) -> None:
    flood(volume)
    paths = [volume.write(f"good{number}/results/open", "12345") for number in range(3)]
    (volume.spool / "good0/results/link").symlink_to("x")
    collector = volume.collector()
    files = [open(path, "a") for path in paths]  # noqa: SIM115
    tally = collector.run_pass()
    for file in files:
        file.close()
    assert (tally.collected, tally.writing, tally.refused) == (BACKLOG, 3, 1)
    assert collector.parts.admission.backlog == {f"good{number}": [1, 5] for number in range(3)}
    collector.close()
    assert len(volume.told("refused")) == 1


def test_two_backlogs_are_moved_side_by_side_and_whole(volume: Volume) -> None:
    flood(volume, "one")
    flood(volume, "two")
    assert volume.one_pass().collected == 2 * BACKLOG
    assert volume.waiting() == {}


def test_a_container_of_another_sidecar_is_not_waited_for(volume: Volume) -> None:
    flood(volume)
    volume.write("good/results/a", "1")

    def hold(connection) -> None:  # type: ignore[no-untyped-def]
        units = ContainerLocks(open_root(volume.spool))
        connection.send(units.acquire("good"))
        connection.recv()

    with Child(hold) as other:
        assert other.receive() is True
        collector = Collector(volume.job(), Events(volume.events.append), CollectorOptions(wait=0.0))
        tally = collector.run_pass()
        assert (tally.collected, tally.elsewhere) == (BACKLOG, 1)
        other.send("end")
        other.wait()
    assert collector.run_pass().collected == 1
    collector.close()


def test_a_visit_continues_where_the_last_one_ended(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "CONTAINERS", 5)
    flood(volume)
    for number in range(40):
        volume.write(f"good{number:02}/results/a", str(number))
    left: list[int] = []
    after_each_move(volume, lambda move: left.append(sum(len(left_of(volume, f"good{n:02}")) for n in range(40))))
    assert volume.waiting() == {}
    assert left == sorted(left, reverse=True)


def test_a_log_that_is_open_is_followed_while_another_container_has_a_backlog(volume: Volume) -> None:
    flood(volume)
    (volume.spool / "good/logs").mkdir(parents=True)
    files = []

    def work(move: int) -> None:
        if move == 1:
            files.append(open(volume.spool / "good/logs/a.log", "a", buffering=1))  # noqa: SIM115
            files[0].write("line\n")
        if move == 5:
            assert list(volume.live().values()) == ["line\n"]

    after_each_move(volume, work)
    files[0].close()
    volume.drain()
    assert [text for text in volume.files().values() if text != "x"] == ["line\n"]
