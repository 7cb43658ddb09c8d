"""The doctor leaves nothing behind, whatever ends it, and touches nothing that is not its own."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.doctor.doctor_scenes import not_ok
from support.processes import LIMIT, reaped, wait_until

from sharedvol.doctor import PeerError, examination, examine, meet
from sharedvol.doctor.agent.actor import Actor
from sharedvol.doctor.agent.limits import PREFIX
from sharedvol.doctor.agent.process import answer
from sharedvol.doctor.agent.warden import AGE, Warden
from sharedvol.doctor.side import Gone, Hung, Local, Process, do


def rooms(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.startswith(PREFIX)]


WAITS = "import sys; from sharedvol.doctor import meet; meet(sys.argv[1], 'nobody', wait=50)"
"""A doctor that waits for a peer who will not come."""


@pytest.fixture
def dead_room(tmp_path: Path) -> Path:
    """A room that a run left which was killed with all its processes."""
    warden = Process("warden", LIMIT)
    do(warden, "inspect", path=str(tmp_path))
    room = tmp_path / do(warden, "make")
    (room / "f1").write_text("x")
    assert warden.end()
    assert room.is_dir()
    return room


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_doctor_that_is_killed_leaves_nothing(how: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS, str(tmp_path)]
    with reaped(subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)) as process:
        wait_until(lambda: any(any(room.iterdir()) for room in rooms(tmp_path)), "its hello")
        os.killpg(process.pid, how)
        process.wait(LIMIT)
        wait_until(lambda: not rooms(tmp_path), "the warden to tidy up")


def test_the_next_run_removes_what_a_dead_one_left(dead_room: Path, tmp_path: Path) -> None:
    examine(str(tmp_path))
    assert rooms(tmp_path) == []


def test_a_directory_that_was_given_the_name_of_a_room_keeps_its_files(tmp_path: Path) -> None:
    """As a user may do who can write the volume: a name alone does not make a directory a room."""
    renamed = tmp_path / f"{PREFIX}0123456789abcdef"
    renamed.mkdir()
    (renamed / "result").write_text("only copy")
    os.utime(renamed, (1, 1))
    warden = Process("warden", LIMIT)
    try:
        do(warden, "inspect", path=str(tmp_path))
        assert do(warden, "clean", believe=True) == [0, 1]
    finally:
        warden.leave()
    assert (renamed / "result").read_text() == "only copy"


def test_a_directory_that_is_put_in_place_of_a_room_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    (closed / "result").write_text("only copy")
    tmp_path.chmod(0o777)
    warden, mkdir = Warden(), os.mkdir
    warden.inspect(str(tmp_path))

    def swapped(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.rename("closed", name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with pytest.raises(OSError, match="not empty"):
        warden.make(open_to_all=True)
    monkeypatch.undo()
    (room,) = rooms(tmp_path)
    assert room.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in room.iterdir()] == ["result"]


def test_a_living_runs_room_stays(tmp_path: Path) -> None:
    warden = Process("warden", LIMIT)
    try:
        do(warden, "inspect", path=str(tmp_path))
        room = tmp_path / do(warden, "make")
        examine(str(tmp_path))
        assert rooms(tmp_path) == [room]
    finally:
        warden.leave()
    assert rooms(tmp_path) == []


def test_a_room_that_is_being_made_is_not_taken_for_a_dead_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another doctor looks between the making of the lock file and its lock."""
    first, second = Warden(), Warden()
    for one in (first, second):
        one.inspect(str(tmp_path))
    flock, cleaned = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr("sharedvol.doctor.agent.warden.fcntl.flock", flock)
        cleaned.append(second.clean(believe=True))
        flock(fd, how)

    monkeypatch.setattr("sharedvol.doctor.agent.warden.fcntl.flock", late)
    room = tmp_path / first.make()
    assert cleaned == [[0, 1]]
    assert room.is_dir()
    assert second.clean(believe=True) == [0, 1]
    first.leave()
    assert rooms(tmp_path) == []


def test_where_locks_lie_a_free_lock_does_not_tell_that_a_room_is_dead(dead_room: Path, tmp_path: Path) -> None:
    warden = Process("warden", LIMIT)
    try:
        do(warden, "inspect", path=str(tmp_path))
        assert do(warden, "clean", believe=False) == [0, 1]
        assert dead_room.is_dir()
        old = time.time() - AGE - 60
        os.utime(dead_room, (old, old))
        assert do(warden, "clean", believe=False) == [1, 0]
    finally:
        warden.leave()
    assert rooms(tmp_path) == []


def test_nothing_but_its_own_is_touched(tmp_path: Path) -> None:
    """Not by name, content, mode or time, though it is named like a room's or lies where rooms do."""
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    (volume / "results").mkdir(parents=True)
    outside.mkdir()
    (volume / "results" / "job.json").write_text("{}")
    (outside / "lock").write_text("theirs")
    (outside / "precious").write_text("theirs")
    (volume / f"{PREFIX}{'0' * 16}").symlink_to(outside)
    (volume / f"{PREFIX}file").write_text("theirs")
    (volume / f"{PREFIX}full" / "sub").mkdir(parents=True)
    (volume / f"{PREFIX}full" / "sub" / "precious").write_text("theirs")

    def facts() -> dict[str, tuple[int, ...]]:
        found = {}
        for path in (*volume.rglob("*"), *outside.rglob("*")):
            info = path.lstat()
            found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        return found

    before = facts()
    assert not_ok(examine(str(volume))) == {}
    assert facts() == before


def test_a_meeting_is_not_held_where_a_link_was_planted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}peer-x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PeerError, match="cannot meet"):
        meet(str(tmp_path), "x", wait=1)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture
def actor(tmp_path: Path) -> Actor:
    (tmp_path / "room").mkdir()
    made = Actor()
    made.enter(str(tmp_path), "room")
    return made


def test_an_actor_writes_to_nothing_that_was_planted(actor: Actor, tmp_path: Path) -> None:
    precious, room = tmp_path / "precious", tmp_path / "room"
    precious.write_text("theirs")
    (room / "hard").hardlink_to(precious)
    (room / "hard.n").hardlink_to(precious)
    (room / "soft").symlink_to(precious)
    os.mkfifo(room / "pipe")
    asked = [
        b'{"do": "append", "name": "hard", "mark": "a", "times": 1, "size": 9}',
        b'{"do": "count", "name": "hard", "times": 1}',
        b'{"do": "append", "name": "soft", "mark": "a", "times": 1, "size": 9}',
        b'{"do": "append", "name": "pipe", "mark": "a", "times": 1, "size": 9}',
        b'{"do": "open", "name": "../precious", "how": "change"}',
        b'{"do": "open", "name": "..", "how": "read"}',
        b'{"do": "remove", "name": "../precious"}',
        b'{"do": "_own", "file": 1}',
        b'{"do": "__class__"}',
        b'{"do": "open", "name": 7, "how": "read"}',
        b"nonsense",
        b"[]",
        b'"do"',
    ]
    for line in asked:
        said = answer(actor, line)
        assert "is" not in said, line
    for step in ("write", "set_mode", "date", "map_write"):
        handle = actor.open("hard", "change")
        said = answer(
            actor,
            b'{"do": "%s", "file": %d%s}'
            % (
                step.encode(),
                handle,
                {
                    "write": b', "text": "x"',
                    "set_mode": b', "mode": 0',
                    "date": b', "nanoseconds": 1',
                    "map_write": b', "text": "x"',
                }[step],
            ),
        )
        assert "wrong" in said, step
    actor.forget()
    assert precious.read_text() == "theirs"


def test_a_step_that_does_not_come_back_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    side = Local(str(tmp_path), "room", 1.0)
    lock_file = tmp_path / "room" / "held"
    with open(lock_file, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        handle = do(side, "open", name="held", how="change")
        with pytest.raises(Hung, match=r"lock did not finish within 1 s$"):
            do(side, "lock", file=handle, family="flock", wait=True)
    assert do(side, "names") == ["held"], "another process is in its place"
    side.kill()


def test_a_process_that_ended_is_told(tmp_path: Path) -> None:
    warden = Process("warden", LIMIT)
    warden.end()
    with pytest.raises(Gone, match="the process of the experiment ended"):
        do(warden, "inspect", path=str(tmp_path))


def test_the_rest_is_told_where_the_directory_hangs_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warden, who tidies up between experiments, gets stuck in the kernel as it does on a server that is away."""
    wardens = []

    class Known(Process):
        def __init__(self, kind: str, patience: float) -> None:
            super().__init__(kind, patience)
            wardens.append(self._popen.pid)

    def hang(id: str) -> None:
        if id == "locks.flock":
            os.kill(wardens[0], signal.SIGSTOP)

    monkeypatch.setattr(examination, "Process", Known)
    report = examine(str(tmp_path), patience=2.0, progress=hang)
    hung = report.of("locks.flock")
    assert hung is not None
    assert (hung.verdict, "sweep did not finish" in hung.detail) == ("unsafe", True)
    assert report.findings[-1].id == examination.EXPERIMENTS[-1].id
