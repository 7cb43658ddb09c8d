"""`Volume`: the dead are forgotten, and kept dead meanwhile."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from members import GATE, joined, run_raising
from processes import Child, run_forked, wait_blocked

from sharedvol import (
    LockTimeout,
    PresenceError,
    ReplicaAliveError,
    Volume,
)


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
    assert (tmp_path / ".replicas/names/c1.lock").exists()
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
        with pytest.raises(PresenceError, match="no replica"):
            run_raising(lambda: Volume(tmp_path).join("c1"))
    assert volume.join("c1").slot == 0


def test_what_is_held_is_let_go_when_the_block_fails(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.join("c1").leave()
    with pytest.raises(KeyError), volume.hold_dead("c1"):
        raise KeyError
    assert run_forked(lambda: Volume(tmp_path, timeout=5).join("c1").slot) == 0


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
