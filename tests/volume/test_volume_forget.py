"""`Volume`: the dead are forgotten, and kept dead meanwhile."""

from __future__ import annotations

import os
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.members import GATE, joined, run_raising
from support.processes import Child, run_forked, wait_blocked

from sharedvol import FileLock, LockTimeout, PresenceError, ReplicaAliveError, Volume


def test_the_dead_can_be_forgotten_and_the_living_not(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    membership = volume.join("c1")
    with pytest.raises(ReplicaAliveError, match="alive"):
        volume.forget("c1")
    assert volume.is_alive("c1") is True
    membership.leave()
    assert volume.forget("c1") is True
    assert volume.forget("c1") is False
    assert (volume.is_alive("c1"), volume.replicas()) == (None, [])
    assert os.listdir(tmp_path / ".replicas/names") == []
    assert volume.join("c1").slot == 0


def test_nobody_joins_while_a_dead_one_is_held(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.join("c1").leave()
    with ExitStack() as stack:
        with volume.hold_dead("c1") as dead:
            assert dead is True
            child = stack.enter_context(Child(joined(tmp_path, "c1")))
            wait_blocked(tmp_path / GATE)
            assert volume.is_alive("c1") is False
            assert volume.forget("c1") is True
        assert child.receive() == 0
        assert volume.is_alive("c1") is True
        child.send(None)


def test_nobody_joins_past_a_gate_that_was_deleted_while_a_dead_one_is_held(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.join("c1").leave()
    with volume.hold_dead("c1") as dead:
        assert dead is True
        os.unlink(tmp_path / GATE)
        with pytest.raises(PresenceError, match="not a replica"):
            run_raising(lambda: Volume(tmp_path).join("c1"))
    assert volume.join("c1").slot == 0


def test_what_is_held_is_let_go_when_the_block_fails(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.join("c1").leave()
    with pytest.raises(KeyError), volume.hold_dead("c1"):
        raise KeyError
    assert run_forked(lambda: Volume(tmp_path, timeout=5).join("c1").slot) == 0


@pytest.mark.usefixtures("any_fork")
def test_a_child_forked_while_a_dead_one_is_held_does_not_hold_it(tmp_path: Path) -> None:
    volume = Volume(tmp_path, timeout=0.01)
    volume.join("c1").leave()

    def forget() -> str:
        try:
            volume.forget("c1")
        except LockTimeout:
            return "waits"
        return "forgot"

    with volume.hold_dead("c1"):
        assert run_forked(forget) == "waits"
    assert run_forked(forget) == "forgot"


def test_of_many_names_only_the_dead_are_forgotten(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    for name in ("c1", "c2", "c3"):
        volume.join(name).leave()
    names = tmp_path / ".replicas/names"
    (names / "c2.json").unlink()  # an earlier release has forgotten it
    (names / "c4.json").write_text("{}")  # it has no lock
    (names / "c5.json").mkdir()
    with FileLock(names / "c3.lock"), volume.join("c6"):
        wanted = ["c1", "c2", "c3", "c4", "c5", "c6", "never", "../c1"]
        assert volume.forget_dead(wanted, seconds=60) == ["c1", "c2", "c4"]
        assert {path.name for path in names.iterdir()} == {"c3.json", "c3.lock", "c5.json", "c6.json", "c6.lock"}
        assert volume.is_alive("c6") is True
    with FileLock(tmp_path / GATE), pytest.raises(LockTimeout):
        Volume(tmp_path, timeout=0).forget_dead(["c6"])
    assert volume.forget_dead(["c6"], seconds=0) == []
    assert volume.forget_dead(["c6"], seconds=60) == ["c6"]


def test_a_lock_file_that_was_replaced_while_a_dead_one_was_held_is_not_removed(tmp_path: Path) -> None:
    """It may be the lock of a replica that joined past a gate that was deleted."""
    volume = Volume(tmp_path)
    volume.join("c1").leave()
    lock = tmp_path / ".replicas/names/c1.lock"
    with volume.hold_dead("c1") as dead:
        assert dead is True
        lock.unlink()
        lock.touch()
        assert volume.forget("c1") is True
    assert lock.exists()


def test_replicas_join_under_names_that_are_forgotten_all_the_while(tmp_path: Path) -> None:
    """Each is alive once it has joined, by the lock that its name has, and has a slot of its own."""
    count = 60

    def lives(connection: Connection) -> None:
        volume = Volume(tmp_path)
        for number in range(count):
            with volume.join(f"c{number % 3}") as membership:
                other = Volume(tmp_path)
                assert other.is_alive(membership.name) is True
                assert other.slots() == [membership.slot]
                assert not other.forget_dead([membership.name])
                assert other.is_alive(membership.name) is True
        connection.send("done")

    with Child(lives) as child:
        volume = Volume(tmp_path, timeout=30)
        names = [f"c{number}" for number in range(3)]
        while not child.connection.poll():
            if volume.is_alive("c0") is not None:
                volume.forget_dead(names)
        assert child.receive() == "done"
    volume.forget_dead(names, seconds=60)
    assert volume.replicas() == [] and os.listdir(tmp_path / ".replicas/names") == []
