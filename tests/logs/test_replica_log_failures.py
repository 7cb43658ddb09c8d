"""What is in the way of a log: full disks, missing and hostile directories, descriptors that others close.

Nothing of it is raised, each record is in the log or on standard error, and the log says what it does not have.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logged import contents, lines, log, once, opened
from support.processes import LIMIT, Child, descriptors, has_permission_to_mount, run_forked

from sharedvol import container_id
from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import files as log_files
from sharedvol.logs import writer as log_writer


class Disk:
    """Has room for so many bytes more; ``os.write`` goes through it."""

    def __init__(self, room: float, error: int = errno.ENOSPC) -> None:
        self.room, self._error, self._write = room, error, os.write

    def write(self, fd: int, data: bytes) -> int:
        taken = self._write(fd, data[: int(min(self.room, len(data)))]) if self.room else 0
        self.room -= taken
        if data and not taken:
            raise OSError(self._error, os.strerror(self._error))
        return taken


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(float("inf"))
    monkeypatch.setattr(os, "write", made.write)
    return made


class Told:
    """What is written to standard error."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture, self._lines = capture, []

    def __getitem__(self, index: int | slice) -> str | list[str]:
        self._lines += self._capture.readouterr().err.splitlines()
        return self._lines[index]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys)


def test_full_disk_is_told_once_with_each_record_and_the_log_says_it_later(
    tmp_path: Path, disk: Disk, told: Told
) -> None:
    with opened(tmp_path) as handler:
        log(handler, "before")
        disk.room = 0
        for number in range(3):
            log(handler, f"lost {number}")
        assert handler.lost == 3
        disk.room = float("inf")
        log(handler, "after")
        log(handler, "and after that")
    assert told[0].startswith(f"sharedvol.logs: cannot write {str(tmp_path)!r}"[:-1])
    assert "no space left on device (ENOSPC); free some space" in told[0]
    assert told[1:] == [f"lost {number}" for number in range(3)]
    (text,) = contents(tmp_path).values()
    before, note, *rest = text.splitlines()
    assert (before, rest) == ("before", ["after", "and after that"])
    assert note.startswith("3 records since ") and "standard error" in note


@pytest.mark.parametrize("room", range(1, 9))
def test_a_record_that_was_begun_on_a_full_disk_is_finished(tmp_path: Path, disk: Disk, told: Told, room: int) -> None:
    with opened(tmp_path) as handler:
        log(handler, "before")
        disk.room = room
        log(handler, "in parts")
        log(handler, "lost")
        disk.room = float("inf")
        log(handler, "after")
        assert handler.lost == 1
    (text,) = contents(tmp_path).values()
    assert [line for line in text.splitlines() if " since " not in line] == ["before", "in parts", "after"]
    assert told[1:] == ["lost"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=25), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_whatever_room_there_is_each_record_is_whole_in_the_log_or_on_standard_error(
    rooms: list[tuple[int, int]], max_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        disk, told = Disk(0), list[str]()
        patch.setattr(os, "write", disk.write)
        patch.setattr("sharedvol.logs.handler._StandardError._show", lambda self, text: told.append(text))
        handler = ReplicaFileHandler(place, max_bytes=max_bytes)
        written = []
        for number, (room, length) in enumerate(rooms):
            disk.room = room
            written.append(f"{number}-{'x' * length}")
            log(handler, written[-1])
        lost = handler.lost
        disk.room = float("inf")
        handler.close()
        found = lines(Path(place))
    notes = [line for line in found.elements() if " records since " in line]
    shown = [text[:-1] for text in told if not text.startswith("sharedvol.logs")]
    assert sorted([*shown, *(line for line in found.elements() if line not in notes)]) == sorted(written)
    assert len(shown) == lost == sum(int(note.split(" ")[0]) for note in notes)


def test_what_cannot_be_finished_when_it_is_closed_is_told(tmp_path: Path, disk: Disk, told: Told) -> None:
    handler = ReplicaFileHandler(tmp_path)
    log(handler, "before")
    disk.room = 3
    log(handler, "in parts")
    handler.close()
    assert told[1:] == ["in parts"]
    disk.room = float("inf")
    with opened(tmp_path) as again:
        log(again, "after")
    assert list(contents(tmp_path).values()) == ["before\nin \nafter\n"]


@pytest.mark.parametrize("cycle", [False, True])
def test_what_cannot_be_finished_when_the_handler_is_dropped_is_told(
    tmp_path: Path, disk: Disk, told: Told, cycle: bool
) -> None:
    handler = ReplicaFileHandler(tmp_path)
    log(handler, "before")
    disk.room = 3
    log(handler, "in parts")
    if cycle:
        handler.itself = handler  # type: ignore[attr-defined]
    del handler
    gc.collect()
    assert told[1:] == ["in parts"]
    disk.room = float("inf")
    with opened(tmp_path) as again:
        log(again, "after")
    assert list(contents(tmp_path).values()) == ["before\nin \nafter\n"]


def test_a_record_that_hits_a_limit_of_size_is_whole_in_the_next_file(tmp_path: Path) -> None:
    def work() -> dict[str, str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        with opened(tmp_path) as handler:
            for text in ("before", "longer than the", "after"):
                log(handler, text)
        return contents(tmp_path)

    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # as Python sets it
    run_forked(work)
    found = [line for text in contents(tmp_path).values() for line in text.splitlines()]
    assert {"before", "longer than the", "after"} <= set(found)


@pytest.mark.skipif(not has_permission_to_mount(), reason="cannot mount here")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
from support.logged import log, opened
place = sys.argv[1]
with open(place + "/ballast", "wb") as ballast, opened(place + "/logs") as handler:
    log(handler, "before")
    try:
        while True:
            os.write(ballast.fileno(), b"x" * 4096)
    except OSError:
        pass
    number = 0
    while not handler.lost:  # the rest of the last page
        number += 1
        log(handler, f"{number} " + "x" * 1000)
    os.ftruncate(ballast.fileno(), 0)
    log(handler, "after")
    print(number, handler.lost)
    with open(handler.path) as file:
        print(file.read(), end="")
"""
    script = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            code,
            str(tmp_path),
            str(Path(__file__).parents[1]),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    number, lost = map(int, first.split())
    assert lost == 1
    texts = [line.split(" ")[0] for line in rest]
    # The record that was begun, and is finished, is not the one that is lost.
    assert texts == ["before", *map(str, range(1, number)), "1", "after"]
    assert f"{number} xxx" in done.stderr and "ENOSPC" in done.stderr


def test_a_missing_volume_is_told_and_nothing_is_made_in_its_place(tmp_path: Path, told: Told) -> None:
    volume = tmp_path / "volume"
    with opened(volume / "{container}" / "logs") as handler:
        log(handler, "lost")
        assert not volume.exists()
        volume.mkdir()
        log(handler, "after")
    assert "mount the volume" in told[0] and told[1:] == ["lost"]
    assert lines(volume)["after"] == 1


def test_a_directory_that_is_removed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is removed while the file in it is open, and the next check notices."""
    monkeypatch.setattr(log_writer, "CHECK_EVERY", 0.0)
    with opened(tmp_path / "{container}" / "logs") as handler:
        log(handler, "gone")
        shutil.rmtree(tmp_path / container_id())
        log(handler, "after")
        log(handler, "and after that")
    assert lines(tmp_path) == once(["after", "and after that"])


def test_a_directory_that_is_removed_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.mkdir, [3]

    def mkdir(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        if path == "logs" and left[0]:
            left[0] -= 1
            shutil.rmtree(tmp_path / container_id())

    monkeypatch.setattr(os, "mkdir", mkdir)
    with opened(tmp_path / "{container}" / "logs") as handler:
        log(handler, "hello")
        assert handler.lost == 0
    assert lines(tmp_path) == once(["hello"])


def test_a_log_that_was_moved_or_deleted_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an operator, or by a sidecar that cannot ask for leases: within a second."""
    clock = [1_800_000_000.0]
    monkeypatch.setattr(log_writer.time, "time", lambda: clock[0])
    with opened(tmp_path / "logs") as handler:
        log(handler, "1")
        assert handler.path is not None
        os.rename(handler.path, tmp_path / "moved")
        log(handler, "2")
        clock[0] += log_writer.CHECK_EVERY
        log(handler, "3")
        os.unlink(handler.path)
        clock[0] -= 10  # set back: the file is checked as well
        log(handler, "4")
    assert (tmp_path / "moved").read_text() == "1\n2\n"
    assert list(contents(tmp_path / "logs").values()) == ["4\n"]


def _link(place: Path, name: str) -> None:
    (place / name).symlink_to(place / "elsewhere")


def _hard_link(place: Path, name: str) -> None:
    (place / "elsewhere").write_text("of another\n")
    os.link(place / "elsewhere", place / name)


def _fifo(place: Path, name: str) -> None:
    os.mkfifo(place / name)


def _socket(place: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(place, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{here}/{name}")
        os.close(here)


def _directory(place: Path, name: str) -> None:
    (place / name).mkdir()


def _of_another_user(place: Path, name: str) -> None:
    (place / name).touch()
    os.chown(place / name, 65532, 65532)


def _held(place: Path, name: str) -> None:
    fcntl.flock(os.open(place / name, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)


@pytest.mark.parametrize("plant", [_link, _hard_link, _fifo, _socket, _directory, _of_another_user, _held])
@pytest.mark.parametrize("late", [False, True], ids=["before-it-looks", "after-it-looked"])
def test_what_another_replica_plants_at_the_name_is_passed_over(
    tmp_path: Path, plant: Callable[[Path, str], None], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written into it, and nothing is waited for."""
    if plant is _of_another_user and os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "logs"
    place.mkdir()
    with opened(place) as handler:
        log(handler, "before")
        assert handler.path is not None
        name = os.path.basename(handler.path)
    os.unlink(place / name)
    if late:
        real, left = os.stat, [name]
        (place / name).touch()

        def stat(path: object, **options: object) -> os.stat_result:
            info = real(path, **options)  # type: ignore[call-overload]
            if left and path == name:
                left.clear()
                os.unlink(place / name)
                plant(place, name)
            return info

        monkeypatch.setattr(os, "stat", stat)
    else:
        plant(place, name)
    with opened(place) as handler:
        log(handler, "safe")
        assert handler.path == str(place / f"log-{name[-12:-4]}-2_{container_id()}.log")
        assert Path(handler.path).read_text() == "safe\n"
        assert handler.lost == 0
    assert not (place / "elsewhere").exists() or (place / "elsewhere").read_text() == "of another\n"


@pytest.mark.parametrize("deep", [False, True])
def test_a_symbolic_link_in_the_place_of_the_replicas_directory_is_not_followed(
    tmp_path: Path, told: Told, deep: bool
) -> None:
    (tmp_path / "target").mkdir()
    link = tmp_path / container_id() / "logs" if deep else tmp_path / container_id()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "target")
    with opened(tmp_path / "{container}" / "logs") as handler:
        log(handler, "lost")
    assert os.listdir(tmp_path / "target") == []
    assert "no symbolic link is followed" in told[0] and told[1:] == ["lost"]


def test_a_descriptor_that_other_code_closed_is_not_written_to(tmp_path: Path) -> None:
    """As daemons do; by now it is the application's database."""
    with opened(tmp_path / "logs") as handler:
        log(handler, "before")
        assert handler.path is not None
        (number,) = (fd for fd in range(3, 1000) if _leads_to(fd, handler.path))
        os.close(number)
        log(handler, "closed")
        (number,) = (fd for fd in range(3, 1000) if _leads_to(fd, handler.path))
        other = os.open(tmp_path / "database", os.O_RDWR | os.O_CREAT)
        os.write(other, b"precious")
        os.dup2(other, number)
        log(handler, "after")
        os.fstat(number)  # nor is it closed
        os.close(other)
        os.close(number)
    assert (tmp_path / "database").read_text() == "precious"
    assert lines(tmp_path / "logs") == once(["before", "closed", "after"])


def _leads_to(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def test_without_descriptors_records_go_to_standard_error(tmp_path: Path) -> None:
    def work(connection: Connection) -> None:
        told: list[str] = []
        sys.stderr = type("Stream", (), {"write": lambda self, text: told.append(text), "flush": lambda self: None})()
        handler = ReplicaFileHandler(tmp_path)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        log(handler, "lost")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        log(handler, "after")
        handler.close()
        connection.send(told)

    with Child(work) as child:
        told = child.receive()
    assert "EMFILE" in told[0] and told[1:] == ["lost\n"]
    assert lines(tmp_path)["after"] == 1


class _Broken:
    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "no reader")


@pytest.mark.parametrize("stream", [None, _Broken()], ids=["none", "broken"])
def test_nothing_is_raised_where_there_is_no_standard_error(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, stream: object
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    disk.room = 0
    with opened(tmp_path) as handler:
        log(handler, "lost")
        assert handler.lost == 1


def test_a_standard_error_that_leads_back_to_the_log_makes_no_circle(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)  # the one that is captured
    with opened(tmp_path) as handler:

        class Back:
            def write(self, text: str) -> int:
                log(handler, text.rstrip())
                return len(text)

            def flush(self) -> None:
                pass

        monkeypatch.setattr(sys, "stderr", Back())
        disk.room = 0
        log(handler, "lost")
        disk.room = float("inf")
        log(handler, "after")
    assert told[1] == "lost" and "cannot write" in told[0]
    assert lines(tmp_path)["after"] == 1


def test_a_formatter_that_knows_only_the_applications_records_does_not_hide_the_note(
    tmp_path: Path, disk: Disk, told: Told
) -> None:
    with opened(tmp_path) as handler:
        handler.setFormatter(logging.Formatter("%(request)s"))
        disk.room = 0
        handler.handle(logging.makeLogRecord({"request": "lost", "levelno": 20}))
        disk.room = float("inf")
        handler.handle(logging.makeLogRecord({"request": "after", "levelno": 20}))
    (text,) = contents(tmp_path).values()
    assert text.startswith("sharedvol.logs: 1 records since ") and text.endswith("\nafter\n")


def test_a_failing_sync_is_told_and_the_record_is_there_once(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, sync_level="ERROR") as handler:
        log(handler, "before")

        def fsync(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fsync)
        log(handler, "error", logging.ERROR)
        assert handler.lost == 0
    assert lines(tmp_path) == once(["before", "error"])
    assert len(told[:]) == 1 and "cannot sync" in told[0]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(log_files.fcntl, "flock", flock)
    yield


def test_without_locks_each_handler_has_a_name_that_nobody_else_makes(tmp_path: Path, no_locks: None) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        log(one, "1")
        log(other, "2")
        log(one, "3")
    assert sorted(text for text in contents(tmp_path).values() if text) == ["1\n3\n", "2\n"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with opened(tmp_path / "{container}" / "logs", max_bytes=10) as handler:
            for number in range(5):
                log(handler, str(number) * 8)
            assert handler.path is not None
            assert descriptors(handler.path) == 1
    assert len(os.listdir("/proc/self/fd")) == before
