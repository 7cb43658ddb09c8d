"""Replica logs and the sidecar that follows and moves them: every record is collected once, whatever comes between."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.logged import disturbed, lines, log, once, record, steps_of
from support.members import joined
from support.processes import Child, wait_until
from support.sidecar.service_process import service
from support.sidecar.volume import Volume

from sharedvol import container_id
from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import writer as log_writer
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.transfer.contents import Contents


def handler_of(volume: Volume, **options: object) -> ReplicaFileHandler:
    return ReplicaFileHandler(volume.spool / "{container}" / "logs", **options)  # type: ignore[arg-type]


def all_lines(volume: Volume) -> Counter[str]:
    return lines(volume.spool, volume.collected)


def test_an_open_log_is_followed_and_a_finished_one_is_moved(volume: Volume) -> None:
    handler = handler_of(volume, max_bytes=20)
    log(handler, "0123456789")
    assert volume.one_pass().followed == 11
    log(handler, "rotated, and another")
    assert volume.one_pass().collected == 1
    assert list(volume.files().values()) == ["0123456789\n"]
    assert list(volume.live().values()) == ["rotated, and another\n"]
    handler.close()
    volume.drain()
    assert all_lines(volume) == once(["0123456789", "rotated, and another"])
    assert all(f"/{container_id()}/" in path for path in volume.files())
    assert volume.live() == {}


@pytest.mark.parametrize("name", [None, "api"])
def test_the_names_in_a_flat_directory_tell_the_container(volume: Volume, name: str | None) -> None:
    (volume.spool / "logs").mkdir()
    handler = ReplicaFileHandler(volume.spool / "logs", name=name, max_bytes=1)
    for number in range(3):
        log(handler, str(number))
    handler.close()
    volume.drain()
    assert sorted(volume.files().values()) == ["0\n", "1\n", "2\n"]
    assert all(f"/{container_id()}/" in path for path in volume.files()), volume.files()
    assert volume.told("unmatched") == []


EVERY = os.environ.get("SHAREDVOL_TEST_KILLS") == "all"
SCENES = ["nothing", "finished", "finished-and-followed", "dead", "own"]
PASSES = [
    (scene, copied) for scene in SCENES for copied in ((False, True) if EVERY or "finished" in scene else (False,))
]


@pytest.mark.parametrize(("scene", "copied"), PASSES)
def test_a_pass_at_any_moment(tmp_path: Path, other_file_system: Path, scene: str, copied: bool) -> None:
    """Before each line of the handler's code in turn: what it just looked at is moved away, or its directory is."""

    def prepare(name: str) -> tuple[Volume, ReplicaFileHandler]:
        collected = other_file_system / name if copied else tmp_path / name / "collected"
        volume = Volume(tmp_path / name / "spool", collected, catalog=None)
        if scene == "dead":
            with Child(joined(volume.spool, container_id())) as child:
                child.receive()
                child.kill()
            (volume.spool / container_id() / "logs").mkdir(parents=True)
        if scene.startswith("finished"):
            before = handler_of(volume)
            log(before, "before")
            if scene == "finished-and-followed":
                volume.one_pass()
            before.close()
        handler = handler_of(volume)
        if scene == "own":
            log(handler, "before")
        return volume, handler

    volume, handler = prepare("counted")
    steps = steps_of(lambda: handler.emit(record("counted")))
    handler.close()
    # Each scene has some of the steps, and others than the next.
    stride = 1 if EVERY else 9
    for step in range(1 + 2 * SCENES.index(scene) % stride, steps + 1, stride):
        volume, handler = prepare(str(step))

        def disturb(number: int, step: int = step, volume: Volume = volume) -> None:
            if number == step:
                volume.one_pass()

        disturbed(lambda handler=handler: handler.emit(record("disturbed")), disturb)
        log(handler, "after")
        volume.one_pass()
        log(handler, "later")
        assert handler.lost == 0
        handler.close()
        volume.drain()
        expected = [
            "disturbed",
            "after",
            "later",
            *(["before"] if scene in ("own", "finished", "finished-and-followed") else []),
        ]
        assert all_lines(volume) == once(expected), step


def test_a_process_that_starts_while_a_lease_is_held_waits_for_nothing(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait until the whole batch is moved, up to 45 seconds (F_SETLEASE(2const))."""
    handler = handler_of(volume)
    log(handler, "before")
    handler.close()
    real, paths = Contents.sync, []

    def sync(self: Contents, items: object) -> None:
        def work(connection: Connection) -> None:
            started = handler_of(volume)
            log(started, "meanwhile")
            connection.send(started.path)
            connection.recv()
            log(started, "and later")

        if not paths:
            child = Child(work)
            paths.append(child.receive())
            children.append(child)
        real(self, items)  # type: ignore[arg-type]

    children: list[Child] = []
    monkeypatch.setattr(Contents, "sync", sync)
    volume.one_pass()
    assert "-2_" in paths[0]
    for child in children:
        with child:
            child.send("go on")
    volume.drain()
    assert all_lines(volume) == once(["before", "meanwhile", "and later"])


@pytest.mark.parametrize("copied", [False, True], ids=["linked", "copied"])
def test_a_sidecar_without_leases_takes_a_silent_log_and_the_next_record_begins_another(
    request: pytest.FixtureRequest, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = request.getfixturevalue("across" if copied else "volume")
    monkeypatch.setattr(lease, "acquire", lambda fd: lease.Lease.UNAVAILABLE)
    clock = [1_800_000_000.0]
    monkeypatch.setattr(log_writer.time, "time", lambda: clock[0])
    handler = handler_of(volume)
    log(handler, "before")
    volume.drain(seal_after=0.0)
    assert list(volume.files().values()) == ["before\n"]
    clock[0] += log_writer.CHECK_EVERY
    log(handler, "after")
    handler.close()
    volume.drain(seal_after=0.0)
    assert sorted(volume.files().values()) == ["after\n", "before\n"]


def test_the_service_and_processes_that_rotate_fork_and_are_killed(volume: Volume) -> None:
    said = volume.spool.parent / "said"
    said.mkdir()

    def work(connection: Connection, who: str) -> None:
        acknowledged = os.open(said / who, os.O_WRONLY | os.O_CREAT)
        handler = handler_of(volume, max_bytes=2_000)
        number = 0
        while not connection.poll():
            number += 1
            log(handler, f"{who}.{number}")
            os.write(acknowledged, f"{who}.{number}\n".encode())
        handler.close()

    with service(volume, "--follow-interval", "0.05", interval="0.05"):
        children = [Child(lambda connection, who=who: work(connection, who)) for who in "abc"]
        for victim in "de":
            wait_until(lambda: len(volume.files()) > 3, "logs that were moved")
            children.pop(0).kill()
            children.append(Child(lambda connection, who=victim: work(connection, who)))
        have = len(volume.files())
        wait_until(lambda: len(volume.files()) > have + 3, "more of them")
        for child in children:
            child.send("end")
            with child:
                pass
    volume.drain()
    found = all_lines_but_torn(volume)
    acknowledged = once([line for path in said.iterdir() for line in path.read_text().split("\n")[:-1]])
    assert set(acknowledged) <= set(found)
    assert set(found.values()) == {1}
    assert len(found) - len(acknowledged) <= 2 * 2  # of the killed: a part, and one that was not acknowledged


def all_lines_but_torn(volume: Volume) -> Counter[str]:
    texts = [*volume.files().values(), *volume.waiting().values()]
    return Counter(line for text in texts for line in text.splitlines())


class Life(RuleBasedStateMachine):
    """Any order of records, rotations, deaths and passes of one sidecar or the next."""

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        root = Path(self.place.name)
        self.volume = Volume(root / "spool", root / "collected", catalog=None)
        self.patch = pytest.MonkeyPatch()
        self.now = 1_800_000_000.0
        self.patch.setattr(log_writer.time, "time", lambda: self.now)
        self.handlers: list[ReplicaFileHandler] = []
        self.written: list[str] = []
        self.sidecar = self.volume.collector()

    @rule()
    @precondition(lambda self: len(self.handlers) < 4)
    def a_process_starts(self) -> None:
        self.handlers.append(handler_of(self.volume, max_bytes=60))

    @rule(data=st.data(), length=st.integers(0, 70))
    @precondition(lambda self: self.handlers)
    def logs(self, data: st.DataObject, length: int) -> None:
        handler = data.draw(st.sampled_from(self.handlers))
        self.written.append(f"{len(self.written)} {'x' * length}")
        log(handler, self.written[-1])

    @rule(hours=st.integers(-30, 30))
    def the_clock_moves(self, hours: int) -> None:
        self.now += hours * 3_600

    @rule(data=st.data())
    @precondition(lambda self: self.handlers)
    def dies(self, data: st.DataObject) -> None:
        handler = data.draw(st.sampled_from(self.handlers))
        self.handlers.remove(handler)
        handler.close()  # what the kernel does, too: nothing is kept in the process

    @rule()
    def a_pass(self) -> None:
        self.sidecar.run_pass()

    @rule()
    def follows(self) -> None:
        self.sidecar.tick()

    @rule()
    def another_sidecar(self) -> None:
        self.sidecar.close()
        self.sidecar = self.volume.collector()

    @invariant()
    def nothing_is_lost_on_standard_error(self) -> None:
        assert all(handler.lost == 0 for handler in getattr(self, "handlers", []))

    def teardown(self) -> None:
        if not hasattr(self, "place"):
            return
        try:
            for handler in self.handlers:
                handler.close()
            self.sidecar.close()
            self.volume.drain()
            assert all_lines(self.volume) == once(self.written)
            assert self.volume.waiting() == {} and self.volume.live() == {}
        finally:
            self.patch.undo()
            self.place.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
