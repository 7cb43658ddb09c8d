"""`Volume` in one container: joining, leaving, forking, racing, forgetting."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from processes import Child, run_forked, run_python, wait_blocked, wait_until

from sharedvol import (
    FileLock,
    InvalidNameError,
    LockTimeout,
    NotJoinedError,
    PresenceError,
    ReplicaAliveError,
    SharedVolError,
    Volume,
    container_id,
    whoami,
)
from sharedvol.locks import kernel

GATE = ".replicas/join.lock"


@pytest.fixture
def public() -> Iterator[Path]:
    """A volume that every user can write."""
    if os.geteuid():
        pytest.skip("needs root to become other users")
    made = tempfile.mkdtemp()
    os.chmod(made, 0o777)
    yield Path(made)
    shutil.rmtree(made)


def joined(path: Path, name: str | None = None) -> Callable[[Connection], None]:
    """What a child does: join, tell its slot, live until it is told something."""

    def work(connection: Connection) -> None:
        connection.send(Volume(path).join(name).slot)
        connection.recv()

    return work


def as_user(user: int, work: Callable[[Connection], object]) -> Callable[[Connection], object]:
    def change(connection: Connection) -> object:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return work(connection)

    return change


def test_joining_gives_the_containers_name_and_the_first_slot(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    with volume.join(purpose="web") as membership:
        assert (membership.name, membership.slot, volume.slot) == (container_id(), 0, 0)
        (replica,) = volume.replicas()
        assert (replica.name, replica.alive, replica.slot, replica.purpose) == (container_id(), True, 0, "web")
        assert (replica.pid, replica.worker) == (os.getpid(), whoami().worker)
        assert replica.joined_at is not None and replica.joined_at.tzinfo == UTC
        assert json.loads(json.dumps(replica.as_dict()))["joined_at"] == replica.joined_at.isoformat()


def test_leaving_frees_name_and_slot_and_keeps_what_is_known(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    membership = volume.join("c1")
    membership.leave()
    membership.leave()
    assert volume.is_alive("c1") is False
    assert [(one.name, one.alive, one.slot) for one in volume.replicas()] == [("c1", False, 0)]
    assert volume.join("c2").slot == 0


def test_leaving_is_possible_in_another_thread(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    membership = volume.join("c1")
    thread = threading.Thread(target=membership.leave)
    thread.start()
    thread.join()
    assert volume.is_alive("c1") is False


def test_a_membership_that_nobody_keeps_lasts_as_long_as_the_process(tmp_path: Path) -> None:
    with Child(lambda connection: (Volume(tmp_path).join("c1"), connection.send(None), connection.recv())) as child:
        child.receive()
        assert Volume(tmp_path).is_alive("c1") is True
        child.kill()
    assert Volume(tmp_path).is_alive("c1") is False


def test_a_slot_before_joining_or_after_leaving_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    with pytest.raises(NotJoinedError, match=r"call join\(\) first"):
        _ = volume.slot
    with volume.join():
        pass
    with pytest.raises(NotJoinedError):
        _ = volume.slot


def test_joining_twice_is_an_error_until_one_leaves(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    with volume.join("c1"), pytest.raises(PresenceError, match="as 'c1' already"):
        volume.join("c1")
    assert volume.join("c1").slot == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "a" * 65, "a\n", "\x1b[31m", "a b"])
def test_a_name_that_is_not_safe_is_refused_and_was_never_there(tmp_path: Path, name: str) -> None:
    volume = Volume(tmp_path)
    with pytest.raises(InvalidNameError):
        volume.join(name)
    volume.join("c1")
    assert volume.is_alive(name) is None
    assert volume.forget(name) is False
    with volume.hold_dead(name) as dead:
        assert dead is False


def test_names_that_end_like_our_files_are_names(tmp_path: Path) -> None:
    names = ["a", "a.json", "a.lock", "a.json.lock"]
    with ExitStack() as stack:
        slots = [stack.enter_context(Volume(tmp_path).join(name)).slot for name in names]
        assert slots == [0, 1, 2, 3]
        assert {one.name: (one.alive, one.slot) for one in Volume(tmp_path).replicas()} == {
            name: (True, slot) for slot, name in enumerate(names)
        }


def test_a_container_whose_name_was_made_safe_joins_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "../my host")
    with Volume(tmp_path).join() as membership:
        assert membership.name == container_id()
        assert Volume(tmp_path).is_alive(container_id()) is True


def test_a_purpose_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 200"):
        Volume(tmp_path).join("c1", purpose="x" * 201)
    with Volume(tmp_path).join("c1", purpose="\U0001f40b" * 200):
        assert Volume(tmp_path).replicas()[0].purpose == "\U0001f40b" * 200


def test_a_volume_that_nobody_joined_is_empty_and_stays_untouched(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    assert (volume.replicas(), volume.slots(), volume.is_alive("c1"), volume.forget("c1")) == ([], [], None, False)
    assert os.listdir(tmp_path) == []


def test_a_volume_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(PresenceError, match=r"mount its volume"):
        Volume(tmp_path / "missing").join()


def test_only_linux_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "AVAILABLE", False)
    with pytest.raises(PresenceError, match="Linux"):
        Volume(tmp_path)


# Forks


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
        with Child(lambda inner: inner.recv()) as child:
            connection.send(child.pid)
            connection.recv()

    with Child(parent) as first:
        grandchild = first.receive()
        first.kill()
        # It was the child of what was killed, and has nobody to receive from: it ends by itself.
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


def run_raising(work: Callable[[], object]) -> None:
    """In another thread: the lock belongs to this one."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except SharedVolError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


# Forgetting


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


# Users


def test_the_register_is_open_to_every_user_whatever_the_umask(public: Path) -> None:
    def join(connection: Connection) -> None:
        os.umask(0o077)
        joined(public, "c1")(connection)

    with Child(as_user(1000, join)) as first, Child(as_user(1001, joined(public, "c2"))) as second:
        assert sorted((first.receive(), second.receive())) == [0, 1]
        for name in ("", "names", "slots"):
            assert (public / ".replicas" / name).stat().st_mode & 0o7777 == 0o1777
        first.send(None)
        second.send(None)


def test_what_another_users_replica_left_in_the_way_is_named(public: Path) -> None:
    def join_again(connection: Connection) -> None:
        try:
            Volume(public).join("c1")
        except PresenceError as error:
            connection.send(str(error))

    Volume(public).join("c1").leave()
    with Child(as_user(1000, join_again)) as child:
        assert "names/c1.json" in child.receive()
    assert Volume(public).slots() == []


def test_a_looker_needs_no_permission_to_write(tmp_path: Path) -> None:
    public = tmp_path
    with Volume(public).join("c1"):
        code = (
            "import os, sys; from sharedvol import Volume; import sharedvol.locks.kernel as kernel\n"
            "opened = os.open\n"
            "def refuse(path, flags, *a, **o):\n"
            "    assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path\n"
            "    return opened(path, flags, *a, **o)\n"
            "os.open = refuse\n"
            "v = Volume(sys.argv[1]); print(v.is_alive('c1'), len(v.replicas()), v.slots())"
        )
        assert run_python(code, str(public)) == "True 1 [0]"
