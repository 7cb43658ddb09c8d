"""`Volume`: joining and leaving, names, users."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.members import joined
from support.processes import Child, run_python

from sharedvol import InvalidNameError, NotJoinedError, PresenceError, Volume, container_id, whoami
from sharedvol.locks.file import linux


@pytest.fixture
def public() -> Iterator[Path]:
    """A volume that every user can write."""
    if os.geteuid():
        pytest.skip("needs root to become other users")
    made = tempfile.mkdtemp()
    os.chmod(made, 0o777)
    yield Path(made)
    shutil.rmtree(made)


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
    monkeypatch.setattr(linux, "AVAILABLE", False)
    with pytest.raises(PresenceError, match="Linux"):
        Volume(tmp_path)


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
            "import os, sys; from sharedvol import Volume; import sharedvol.locks.file.linux as kernel\n"
            "opened = os.open\n"
            "def refuse(path, flags, *a, **o):\n"
            "    assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path\n"
            "    return opened(path, flags, *a, **o)\n"
            "os.open = refuse\n"
            "v = Volume(sys.argv[1]); print(v.is_alive('c1'), len(v.replicas()), v.slots())"
        )
        assert run_python(code, str(public)) == "True 1 [0]"
