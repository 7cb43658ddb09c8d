"""`Volume` in several processes of one container: forks and races."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.members import GATE, joined, run_raising
from support.processes import Child, is_free, run_forked, wait_blocked, wait_until

from sharedvol import FileLock, LockTimeout, NotJoinedError, Volume
from sharedvol.volume.open_register import OpenRegister

# Forks


@pytest.mark.usefixtures("any_fork")
def test_a_forked_child_is_no_member_until_it_joins_and_then_shares_the_slot(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    membership = volume.join("c1")

    def child() -> tuple[bool, str, int]:
        active = membership.active
        try:
            before = str(volume.slot)
        except NotJoinedError as error:
            before = type(error).__name__
        membership.leave()
        return active, before, volume.join("c1").slot

    other = Volume(tmp_path).join("other")
    assert run_forked(child) == (False, "NotJoinedError", 0)
    assert (volume.slot, volume.is_alive("c1"), other.slot) == (0, True, 1)
    membership.leave()
    assert volume.is_alive("c1") is False


@pytest.mark.usefixtures("any_fork")
def test_a_child_that_leaves_for_its_parent_closes_nothing_of_its_own(tmp_path: Path) -> None:
    membership = Volume(tmp_path).join("c1")

    def child() -> list[bool]:
        locks: list[FileLock] = []
        while not locks or locks[-1].fileno() <= last:  # so that one has the number of a claim of the parent's
            locks.append(FileLock(tmp_path / f"{len(locks)}.lock"))
            locks[-1].acquire()
        membership.leave()
        return [is_free(lock.path) for lock in locks]

    last = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert set(run_forked(child)) == {False}


def test_a_forked_worker_keeps_the_replica_alive_when_the_first_process_leaves(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    membership = volume.join("c1")
    with Child(joined(tmp_path, "c1")) as worker:
        assert worker.receive() == 0
        membership.leave()
        assert volume.is_alive("c1") is True
        assert Volume(tmp_path).join("c2").slot == 1
        assert volume.join("c1").slot == 0
        worker.send(None)


def test_a_child_that_did_not_join_does_not_keep_its_parent_alive(tmp_path: Path) -> None:
    def parent(connection: Connection) -> None:
        Volume(tmp_path).join("c1")
        with Child(lambda inner: (inner.send("I run"), inner.recv())) as child:
            child.receive()  # until then it is in the fork, where it has what its parent holds
            connection.send(child.pid)
            connection.recv()

    with Child(parent) as first:
        grandchild = first.receive()
        first.kill()
        # Its parent was killed and no process sends to it, so it ends by itself.
        assert Volume(tmp_path).is_alive("c1") is False
        wait_until(lambda: not _runs(grandchild), "the grandchild to end")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_volume_can_be_sent_to_another_process_which_has_not_joined(tmp_path: Path) -> None:
    volume = Volume(tmp_path, timeout=7)
    volume.join("c1")
    again = pickle.loads(pickle.dumps(volume))
    assert again.path == tmp_path
    with pytest.raises(NotJoinedError):
        _ = again.slot
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Volume.is_alive, (volume, "c1")) is True
        pool.close()
        pool.join()


# Races


def test_twenty_that_join_at_once_get_twenty_slots(tmp_path: Path) -> None:
    Volume(tmp_path).join("first").leave()
    with ExitStack() as stack:
        gate = FileLock(tmp_path / GATE)
        gate.acquire()
        children = [stack.enter_context(Child(joined(tmp_path, f"c{number}"))) for number in range(20)]
        wait_blocked(tmp_path / GATE, 20)
        gate.release()
        assert sorted(child.receive() for child in children) == list(range(20))
        live = {one.name: one.slot for one in Volume(tmp_path).replicas() if one.alive}
        assert sorted(live.values()) == Volume(tmp_path).slots() == list(range(20))
        for child in children:
            child.send(None)


def test_twenty_workers_of_one_container_that_join_at_once_share_one_slot(tmp_path: Path) -> None:
    Volume(tmp_path).join("first").leave()
    with ExitStack() as stack:
        gate = FileLock(tmp_path / GATE)
        gate.acquire()
        children = [stack.enter_context(Child(joined(tmp_path, "c1"))) for _ in range(20)]
        wait_blocked(tmp_path / GATE, 20)
        gate.release()
        assert [child.receive() for child in children] == [0] * 20
        assert Volume(tmp_path).slots() == [0]
        for child in children:
            child.send(None)


def test_replicas_that_make_the_register_at_once_use_one(tmp_path: Path) -> None:
    def work(number: int) -> Callable[[Connection], None]:
        def join(connection: Connection) -> None:
            rename = os.rename

            def wait_and_rename(source: str, target: str, **options: Any) -> None:
                if target.endswith(".replicas"):
                    connection.send("made")
                    connection.recv()
                rename(source, target, **options)

            os.rename = wait_and_rename  # type: ignore[assignment]
            joined(tmp_path, f"c{number}")(connection)

        return join

    with ExitStack() as stack:
        children = [stack.enter_context(Child(work(number))) for number in range(5)]
        assert [child.receive() for child in children] == ["made"] * 5
        for child in children:
            child.send("go")
        assert sorted(child.receive() for child in children) == [0, 1, 2, 3, 4]
        assert os.listdir(tmp_path) == [".replicas"]
        for child in children:
            child.send(None)


def test_waiting_for_another_that_joins_is_bounded_and_named(tmp_path: Path) -> None:
    Volume(tmp_path).join("c1").leave()
    with FileLock(tmp_path / GATE):
        with pytest.raises(LockTimeout, match=r"join\.lock"):
            run_raising(lambda: Volume(tmp_path, timeout=0.01).join("c2"))
        assert run_forked(lambda: [one.alive for one in Volume(tmp_path).replicas()]) == [False]


def test_a_replica_that_joins_while_it_is_looked_at_never_lives_with_the_slot_of_its_last_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Volume(tmp_path).join("c0"):
        Volume(tmp_path).join("c1").leave()
    looks = []

    def join_before_the_second(look: Callable[..., Any]) -> Callable[..., Any]:
        def looking(register: OpenRegister, name: str) -> Any:
            if name == "c1":
                looks.append(look.__name__)
                if len(looks) == 2:
                    stack.enter_context(Volume(tmp_path).join("c1"))
            return look(register, name)

        return looking

    with ExitStack() as stack:
        volume = Volume(tmp_path)
        with monkeypatch.context() as patch:
            for look in ("is_alive", "read"):
                patch.setattr(OpenRegister, look, join_before_the_second(getattr(OpenRegister, look)))
            (found,) = [one for one in volume.replicas() if one.name == "c1"]
        assert (found.alive, found.slot) != (True, 1)
        (found,) = [one for one in volume.replicas() if one.name == "c1"]
        assert (found.alive, found.slot) == (True, 0)
