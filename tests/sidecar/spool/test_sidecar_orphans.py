"""The directories of dead containers: drained, then removed. Those of the living: never."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.members import joined
from support.processes import Child, wait_blocked, wait_until
from support.sidecar.replica import dead
from support.sidecar.service_process import service, settled
from support.sidecar.volume import Volume

import sharedvol
from sharedvol import publish
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.spool.orphans import Orphans


def collector_of(volume: Volume) -> Collector:
    return volume.collector(catalog=None)


def passes(volume: Volume, count: int = 3) -> None:
    for _ in range(count):
        volume.one_pass()


def test_dead_container_is_drained_then_removed(volume: Volume) -> None:
    """Results, logs, nested and empty directories, and the temporary of a publish that was killed."""

    def work(connection: Connection) -> None:
        sharedvol.Volume(volume.spool).join("c1")
        with publish(volume.spool / "c1/results/deep/er/half.json") as file:
            file.write("never published")
            connection.send("half")
            connection.recv()

    volume.write("c1/results/deep/er/whole", "1")
    volume.write("c1/logs/app.log", "2")
    (volume.spool / "c1/results/empty/below").mkdir(parents=True)
    (volume.spool / "c1/cache").mkdir()
    with Child(work) as child:
        assert child.receive() == "half"
        child.kill()
    passes(volume)
    assert sorted(volume.files().values()) == ["1", "2"]
    assert not (volume.spool / "c1").exists()
    assert [event.path for event in volume.told("orphan_removed")] == ["c1"]
    assert sharedvol.Volume(volume.spool).is_alive("c1") is None
    assert volume.told("orphan_kept") == []


def test_followed_log_whose_writer_died_is_sealed_and_its_directory_removed(volume: Volume) -> None:
    def work(connection: Connection) -> None:
        sharedvol.Volume(volume.spool).join("c1")
        with open(volume.write("c1/logs/app.log", "first\n"), "a") as log:
            connection.send("open")
            while connection.recv() == "more":
                log.write("second\n")
                log.flush()
                connection.send("done")

    with Child(work) as child:
        assert child.receive() == "open"
        collector = collector_of(volume)
        collector.run_pass()
        assert child.ask("more") == "done"
        collector.run_pass()
        assert list(volume.live().values()) == ["first\nsecond\n"]
        child.kill()
    for _ in range(3):
        collector.run_pass()
    collector.close()
    assert list(volume.files().values()) == ["first\nsecond\n"] and volume.live() == {}
    assert not (volume.spool / "c1").exists()


def test_recreated_under_a_new_name_the_old_one_goes(volume: Volume) -> None:
    dead(volume, "old")
    volume.write("old/results/a", "1")
    with Child(joined(volume.spool, "new")) as child:
        child.receive()
        volume.write("new/results/b", "2")
        passes(volume)
        assert not (volume.spool / "old").exists() and (volume.spool / "new/results").is_dir()
        child.send("end")


def test_recreated_under_the_same_name_or_alive_and_empty_it_is_never_removed(volume: Volume) -> None:
    dead(volume)
    (volume.spool / "c1").mkdir()
    with Child(joined(volume.spool, "c1")) as child:
        child.receive()
        passes(volume)
        assert (volume.spool / "c1").is_dir()
        child.send("end")
    passes(volume)
    assert not (volume.spool / "c1").exists()


def test_one_that_never_joined_and_the_kinds_stay(volume: Volume) -> None:
    for name in ("stranger", "results", "logs"):
        (volume.spool / name).mkdir()
    dead(volume, "results")
    passes(volume)
    assert {path.name for path in volume.spool.iterdir() if not path.name.startswith(".")} == {
        "stranger",
        "results",
        "logs",
    }


@pytest.mark.parametrize("left", [".hidden", "notes.txt", "cache/kept", "results/.part", "results/deep/.part"])
def test_what_is_never_collected_is_kept_and_told_once(volume: Volume, left: str) -> None:
    dead(volume)
    kept = volume.write(f"c1/{left}", "only copy")
    volume.write("c1/results/a", "1")
    with service(volume, interval="0.02") as served:
        line = served.until("orphan_kept")
        assert left in line["detail"] and line["path"] == "c1"
        wait_until(lambda: len(volume.files()) == 1, "the result")
        volume.write("c2/results/b", "2")
        wait_until(lambda: len(volume.files()) == 2, "some more passes")
        settled(served)
    assert [line["event"] for line in served.seen].count("orphan_kept") == 1
    assert kept.read_text() == "only copy"
    kept.unlink()
    passes(volume)
    assert not (volume.spool / "c1").exists()


def test_what_a_sidecar_with_other_kinds_collects_is_not_reported_as_never_collected(volume: Volume) -> None:
    service = volume.collector(quiet=600.0)
    volume.write("c1/logs/app.log", "2")
    dead(volume)
    for _ in range(3):
        volume.one_pass(kinds=("results",))
    assert volume.told("orphan_kept") == [] and volume.told("orphan_removed") == []
    service.close()
    passes(volume)
    assert list(volume.files().values()) == ["2"] and not (volume.spool / "c1").exists()


def test_what_no_settings_collect_is_reported(volume: Volume) -> None:
    volume.write("c1/logs/app.log", "2")
    dead(volume)
    volume.one_pass(kinds=("results",))
    assert "'logs/app.log'" in volume.told("orphan_kept")[0].detail


def test_they_can_be_kept(volume: Volume) -> None:
    dead(volume)
    volume.write("c1/results/a", "1")
    for _ in range(3):
        volume.one_pass(orphans=False)
    assert (volume.spool / "c1/results").is_dir() and len(volume.files()) == 1


def _replica(volume: Volume) -> Callable[[Connection], None]:
    """What a replica does: join, make its directory, write."""

    def work(connection: Connection) -> None:
        assert connection.recv() == "join"
        sharedvol.Volume(volume.spool).join("c1")
        target = volume.spool / "c1/results"
        target.mkdir(parents=True, exist_ok=True)
        (target / "fresh").write_text("fresh")
        connection.send("written")
        connection.recv()

    return work


@pytest.mark.parametrize("step", ["_empty", "rmdir", "forget"])
def test_a_join_during_the_removal_waits_and_makes_the_directory_anew(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The join begins when the removal is at ``step``, and cannot end before the removal has."""
    dead(volume)
    (volume.spool / "c1/results").mkdir(parents=True)
    collector = collector_of(volume)
    gate = volume.spool / ".replicas/join.lock"
    with Child(_replica(volume)) as child:
        began = []

        def begin() -> None:
            if not began:
                began.append(True)
                child.send("join")
                wait_blocked(gate)

        owner = {"_empty": Orphans, "rmdir": os, "forget": sharedvol.Volume}[step]
        real = getattr(owner, step)

        def held(*args: object, **options: object) -> object:
            if step != "rmdir" or args[0] == "c1":
                begin()
            return real(*args, **options)

        monkeypatch.setattr(owner, step, held)
        collector.run_pass()
        monkeypatch.undo()
        assert began
        assert child.receive() == "written"
        assert volume.told("orphan_removed")
        assert (volume.spool / "c1/results/fresh").exists()
        collector.run_pass()
        assert volume.bag() == {"fresh": 1} and (volume.spool / "c1/results").is_dir()
        child.send("end")
    collector.close()


def test_one_that_is_stopped_while_it_joins_does_not_stop_the_others(volume: Volume) -> None:
    dead(volume)
    (volume.spool / "c1").mkdir()
    volume.write("c2/results/a", "1")

    def work(connection: Connection) -> None:
        with sharedvol.FileLock(volume.spool / ".replicas/join.lock"):
            connection.send("held")
            connection.recv()

    with Child(work) as child:
        assert child.receive() == "held"
        tally = volume.one_pass()
        assert tally.collected == 1 and (volume.spool / "c1").is_dir()
        child.send("end")
    volume.one_pass()
    assert not (volume.spool / "c1").exists()


def test_replicas_that_come_and_go_under_one_name_never_fail(volume: Volume) -> None:
    """While a sidecar passes and passes: each life joins, makes its directory and writes."""
    failed: list[BaseException] = []
    ended = threading.Event()

    def sweep() -> None:
        try:
            collector = collector_of(volume)
            while not ended.is_set():
                collector.run_pass()
            for _ in range(3):
                collector.run_pass()
            collector.close()
        except BaseException as error:
            failed.append(error)

    def lives(connection: Connection) -> None:
        for number in range(60):
            membership = sharedvol.Volume(volume.spool).join("c1")
            target = Path(volume.spool, "c1/results")
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{number}").write_text(str(number))
            membership.leave()
        connection.send("done")

    with Child(lives) as child:
        sweeping = threading.Thread(target=sweep)
        sweeping.start()
        try:
            assert child.receive() == "done"
        finally:
            ended.set()
            sweeping.join()
    assert failed == []
    assert sorted(volume.bag()) == sorted(map(str, range(60)))
    assert not (volume.spool / "c1").exists()
