"""A published file appears whole, once, and replaces nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import LIMIT, Child, run_forked

from sharedvol import AlreadyPublishedError, InvalidNameError, PublishError, publish, stale_temporaries
from sharedvol.publishing.mark import is_marked, marked_time
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX

DAY_NS = 86_400 * 10**9


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


def listing(path: Path) -> list[str]:
    """What is in the directory of ``path``."""
    return sorted(os.listdir(path.parent))


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_text(target: Path) -> None:
    with publish(target) as file:
        file.write("ß\n")
    assert target.read_bytes() == "ß\n".encode()
    assert listing(target) == ["result.json"]


def test_text_in_an_encoding_and_with_newlines(target: Path) -> None:
    with publish(target, "wt", encoding="latin-1", newline="\r\n") as file:
        file.write("ß\n")
    assert target.read_bytes() == b"\xdf\r\n"


def test_bytes(target: Path) -> None:
    data = os.urandom(300_000)
    with publish(str(target), "wb") as file:
        file.write(data)
    assert target.read_bytes() == data


def test_an_empty_file(target: Path) -> None:
    with publish(target):
        pass
    assert target.read_bytes() == b""


def test_only_a_hidden_temporary_is_seen_before_the_end(target: Path) -> None:
    with publish(target, "wb") as file:
        file.write(b"half")
        file.flush()
        (name,) = listing(target)
        assert name.startswith(".")
        assert name.endswith(TEMPORARY_SUFFIX)
        assert not target.exists()
    assert listing(target) == ["result.json"]


def test_the_name_is_linked_after_the_data_are_synced_and_before_the_directory_is(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, link, unlink = os.fsync, os.link, os.unlink

    def recorded_fsync(fd: int) -> None:
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            assert info.st_size == 4, "synced before the data were written"
        calls.append("fsync directory" if stat.S_ISDIR(info.st_mode) else "fsync file")
        fsync(fd)

    def recorded(call: str, real: Any) -> Any:
        return lambda *args, **options: (calls.append(call), real(*args, **options))[1]

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "link", recorded("link", link))
    monkeypatch.setattr(os, "unlink", recorded("unlink", unlink))
    with publish(target) as file:
        file.write("data")
    assert calls == ["fsync file", "link", "fsync directory", "unlink"]


def test_a_taken_name_is_told_before_the_block(target: Path) -> None:
    target.write_text("first")
    with pytest.raises(AlreadyPublishedError, match="left as it is"), publish(target):
        pytest.fail("the block ran")
    with pytest.raises(FileExistsError), publish(target):
        pytest.fail("the block ran")
    assert target.read_text() == "first"
    assert listing(target) == ["result.json"]


def test_a_name_taken_meanwhile_is_left_as_it_is(target: Path) -> None:
    with pytest.raises(AlreadyPublishedError), publish(target) as file:
        file.write("second")
        target.write_text("first")
    assert target.read_text() == "first"
    assert listing(target) == ["result.json"]


def test_of_racing_processes_one_wins_and_its_file_is_whole(target: Path) -> None:
    def race(connection: Connection) -> None:
        letter = connection.recv()
        try:
            with publish(target) as file:
                file.write(letter * 100_000)
                connection.send("written")
                connection.recv()  # all have written: now all publish
        except AlreadyPublishedError:
            connection.send("lost")
        else:
            connection.send("won")

    children = [Child(race) for _ in range(8)]
    try:
        for letter, child in zip("abcdefgh", children, strict=True):
            child.send(letter)
            assert child.receive() == "written"
        for child in children:
            child.send("go")
        outcomes = [child.receive() for child in children]
    finally:
        for child in children:
            child.__exit__(None, None, None)
    assert outcomes.count("won") == 1
    assert outcomes.count("lost") == 7
    assert target.read_text() == "abcdefgh"[outcomes.index("won")] * 100_000
    assert listing(target) == ["result.json"]


def test_of_racing_threads_one_wins(target: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def race() -> None:
        try:
            with publish(target) as file:
                barrier.wait(LIMIT)
                file.write("x")
        except AlreadyPublishedError:
            outcomes.append("lost")
        else:
            outcomes.append("won")

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]


def test_replace_puts_the_new_file_in_the_old_ones_place(target: Path) -> None:
    target.write_text("old")
    with target.open() as reader, publish(target, replace=True) as file:
        file.write("new")
        file.flush()
        assert target.read_text() == "old"
        assert reader.read() == "old"
    assert target.read_text() == "new"
    assert listing(target) == ["result.json"]


def test_replace_publishes_where_there_was_none(target: Path) -> None:
    with publish(target, replace=True) as file:
        file.write("new")
    assert target.read_text() == "new"


def test_a_symbolic_link_at_the_name_is_not_followed(target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    target.symlink_to(victim)
    with pytest.raises(AlreadyPublishedError), publish(target):
        pytest.fail("the block ran")
    assert not victim.exists()
    victim.write_text("mine")
    with publish(target, replace=True) as file:
        file.write("new")
    assert victim.read_text() == "mine"
    assert not target.is_symlink()
    assert target.read_text() == "new"


def _socket(path: Path) -> None:
    place = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/{path.name}")  # the path of a socket has at most 107 bytes
    os.close(place)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may not make devices")


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a FIFO"), (_socket, "a socket"), (_device, "a device"), (Path.mkdir, "a directory")]
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_replace_replaces_only_files(target: Path, make: Callable[[Path], None], kind: str, late: bool) -> None:
    if not late:
        make(target)
    with pytest.raises(PublishError, match=f"it is {kind}, and only files are replaced"):  # noqa: SIM117
        with publish(target, replace=True) as file:
            assert late, "the block ran"
            file.write("new")
            make(target)
    assert not target.is_file()
    assert listing(target) == ["result.json"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("permissions", [0o640, 0o600, 0o400, 0o755, 0o4750])
def test_a_file_never_has_a_wider_mode_than_its_final_one(target: Path, replace: bool, permissions: int) -> None:
    def write() -> None:
        os.umask(0)
        with publish(target, replace=replace, permissions=permissions) as file:
            file.write("secret")
            file.flush()
            (written,) = target.parent.iterdir()
            assert not stat.S_IMODE(written.stat().st_mode) & ~permissions & 0o777

    run_forked(write)
    assert stat.S_IMODE(target.stat().st_mode) == permissions


@pytest.mark.parametrize("permissions", [0o640, 0o600, 0o666])
def test_permissions_do_not_depend_on_the_umask(target: Path, permissions: int) -> None:
    def write() -> None:
        os.umask(0o077)
        with publish(target, permissions=permissions) as file:
            file.write("x")

    run_forked(write)
    assert stat.S_IMODE(target.stat().st_mode) == permissions


def test_permissions_are_the_umasks_unless_given(target: Path) -> None:
    def write() -> None:
        os.umask(0o027)
        with publish(target) as file:
            file.write("x")

    run_forked(write)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x/..", "/"])
def test_what_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        publish(name)


def test_a_name_like_a_temporarys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError, match="temporary"):
        publish(tmp_path / f".x{TEMPORARY_SUFFIX}")


@pytest.mark.parametrize("mode", ["r", "a", "x", "r+", "w+", "rb", ""])
def test_a_mode_that_is_not_for_writing_is_refused(target: Path, mode: Any) -> None:
    with pytest.raises(ValueError, match="mode"):
        publish(target, mode)


def test_a_name_too_long_leaves_nothing(tmp_path: Path) -> None:
    for replace in (False, True):
        with pytest.raises(PublishError) as caught, publish(tmp_path / ("x" * 256), replace=replace):
            pass
        assert caught.value.errno == errno.ENAMETOOLONG
    assert os.listdir(tmp_path) == []


def test_an_unknown_encoding_leaves_nothing(target: Path) -> None:
    before = open_descriptors()
    with pytest.raises(LookupError), publish(target, encoding="no-such"):
        pytest.fail("the block ran")
    assert listing(target) == []
    assert open_descriptors() == before


def test_a_body_may_close_the_file_itself(target: Path) -> None:
    with publish(target) as file:
        file.write("whole")
        file.close()
        assert not target.exists()
        assert list(stale_temporaries(target.parent)) == []
    assert target.read_text() == "whole"
    assert listing(target) == ["result.json"]


def test_a_change_of_directory_does_not_move_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with publish("relative") as file:
        file.write("x")
        monkeypatch.chdir("other")
    assert sorted(os.listdir(tmp_path)) == ["other", "relative"]
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("error", [None, RuntimeError("in the child")])
def test_a_child_that_leaves_the_block_changes_nothing(target: Path, error: RuntimeError | None) -> None:
    publication = publish(target)
    with publication as file:
        file.write("once")  # still in the buffer, which the fork copies

        def leave_block(connection: Connection) -> None:
            publication.__exit__(type(error) if error else None, error, None)
            connection.send(open_descriptors())

        before = run_forked(open_descriptors)
        with Child(leave_block) as child:
            assert child.receive() == before - 3, "the child keeps the file, the lock or the directory open"
        (name,) = listing(target)
        assert name.endswith(TEMPORARY_SUFFIX), "the child published or unlinked"
        assert os.stat(target.parent / name).st_size == 0, "the child wrote what its parent had buffered"
        file.write(" more")
    assert target.read_text() == "once more"
    assert listing(target) == ["result.json"]


def test_a_killed_child_of_the_writer_changes_nothing(target: Path) -> None:
    with publish(target) as file:
        file.write("whole")
        with Child(lambda connection: connection.recv()) as child:
            child.kill()
    assert child.status == -signal.SIGKILL
    assert target.read_text() == "whole"


@pytest.mark.parametrize("replace", [False, True])
def test_a_published_file_carries_the_mark(tmp_path: Path, replace: bool) -> None:
    for number in range(50):
        with publish(tmp_path / f"file{number}", replace=replace) as file:
            file.write("x" * number)
        info = (tmp_path / f"file{number}").stat()
        assert is_marked(info.st_mtime_ns, info.st_size)


@pytest.mark.parametrize("act", [os.utime, append, lambda path: os.truncate(path, 0)])
def test_a_change_of_a_published_file_removes_the_mark(tmp_path: Path, act: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    with publish(path) as file:
        file.write("x")
    act(path)
    info = path.stat()
    assert not is_marked(info.st_mtime_ns, info.st_size)


def test_a_part_of_a_copy_with_the_time_of_the_whole_is_not_marked() -> None:
    whole = marked_time(1_700_000_000_123_456_789, 1_000)
    assert is_marked(whole, 1_000)
    assert not any(is_marked(whole, size) for size in range(1_000))


def test_a_whole_second_is_never_a_mark() -> None:
    assert not any(is_marked(second * 10**9, size) for second in range(0, 10**9, 9_999_991) for size in range(1_000))


@given(st.integers(-(2**33) * 10**9, 2**38 * 10**9), st.integers(0, 2**62))
def test_a_mark_moves_the_time_by_two_seconds_at_most_and_keeps_the_day(mtime_ns: int, size: int) -> None:
    marked = marked_time(mtime_ns, size)
    assert is_marked(marked, size)
    assert -(10**9) < mtime_ns - marked <= 2 * 10**9
    assert marked // DAY_NS == mtime_ns // DAY_NS
    assert marked < mtime_ns or mtime_ns % DAY_NS < 10**9


def test_files_of_one_second_and_one_size_have_different_times() -> None:
    assert len({marked_time(10**18 + nanosecond, 5) for nanosecond in range(1_000)}) == 1_000
