"""A temporary whose writer died is found and removed; one whose writer lives never is."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child

from sharedvol import publish, remove_stale_temporaries, stale_temporaries
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


def write_slowly(target: Path, connection: Connection) -> None:
    """Stay in the block until told to leave it."""
    with publish(target) as file:
        file.write("half")
        file.flush()
        connection.send("in the block")
        connection.recv()


def kill_in_block(target: Path) -> Path:
    """Leave a temporary behind, as a writer does that is killed."""
    with Child(lambda connection: write_slowly(target, connection)) as child:
        assert child.receive() == "in the block"
        before = set(os.listdir(target.parent))
        child.kill()
        assert set(os.listdir(target.parent)) == before
    (stale,) = stale_temporaries(target.parent)
    return stale


def test_a_killed_writers_temporary_is_found_and_removed(target: Path) -> None:
    stale = kill_in_block(target)
    assert stale.exists()
    assert stale.name.endswith(TEMPORARY_SUFFIX)
    assert remove_stale_temporaries(target.parent) == [stale]
    assert os.listdir(target.parent) == []
    assert remove_stale_temporaries(str(target.parent)) == []


def test_a_living_writers_temporary_is_not_touched(target: Path) -> None:
    stale = kill_in_block(target)
    with Child(lambda connection: write_slowly(target, connection)) as child:
        assert child.receive() == "in the block"
        assert list(stale_temporaries(target.parent)) == [stale]
        assert remove_stale_temporaries(target.parent) == [stale]
        child.send("leave")
    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["result.json"]


def test_ones_own_temporary_is_not_touched(target: Path) -> None:
    with publish(target) as file:
        assert list(stale_temporaries(target.parent)) == []
        assert remove_stale_temporaries(target.parent) == []
        file.write("whole")
    assert target.read_text() == "whole"


def test_looking_at_a_stale_temporary_leaves_it_stale(target: Path) -> None:
    stale = kill_in_block(target)
    looked = stale_temporaries(target.parent)
    assert next(looked) == stale
    assert list(stale_temporaries(target.parent)) == [stale], "the first look still holds the lock"


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_kill_before_the_name_leaves_no_name(target: Path, call: str) -> None:
    publish_and_die(target, call)
    (stale,) = stale_temporaries(target.parent)
    assert not target.exists()
    assert remove_stale_temporaries(target.parent) == [stale]
    assert os.listdir(target.parent) == []


def test_a_kill_between_the_name_and_the_end_leaves_the_file_whole(target: Path) -> None:
    publish_and_die(target, "unlink")
    assert target.read_text() == "whole"
    (stale,) = stale_temporaries(target.parent)
    assert stale.samefile(target)
    assert remove_stale_temporaries(target.parent) == [stale]
    assert os.listdir(target.parent) == ["result.json"]
    assert target.read_text() == "whole"


def publish_and_die(target: Path, call: str) -> None:
    """Publish ``target`` in a child that is killed just before its first ``os.<call>``."""

    def work(_: Connection) -> None:
        setattr(os, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with publish(target) as file:
            file.write("whole")

    child = Child(work)
    with child:
        status = child.wait()
        child.kill()  # expected: not a failure of the child's
    assert status == -signal.SIGKILL


def test_a_cleaner_faster_than_the_lock_makes_the_writer_take_another(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    removed: list[Path] = []

    def flock(fd: int, operation: int) -> None:
        if not removed and operation == fcntl.LOCK_EX:
            removed.extend([Path("pending")])  # the cleaner's own flock comes through here as well
            removed[:] = remove_stale_temporaries(target.parent)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with publish(target) as file:
        file.write("whole")
        (now,) = os.listdir(target.parent)
    assert len(removed) == 1, "the cleaner did not get between creation and lock"
    assert removed[0].name != now
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["result.json"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("look", [stale_temporaries, remove_stale_temporaries])
def test_what_is_published_during_a_look_is_not_stale(
    look: Callable[[Path], Iterable[Path]], replace: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    publication = publish(target, replace=replace)
    publication.__enter__().write("whole")
    published: list[bool] = []

    def flock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_NB:  # the look has opened it, and does not have the lock yet
            published.append(publication.__exit__(None, None, None) is None)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert list(look(target.parent)) == []
    assert published == [True]
    assert target.read_text() == "whole"


def test_a_look_between_creation_and_lock_does_no_harm(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    looks: list[Any] = []

    def flock(fd: int, operation: int) -> None:
        if not looks and operation == fcntl.LOCK_EX:
            looks.append(stale_temporaries(target.parent))
            looks.append(next(looks[0]))  # it looks stale before it is locked, and a look does no harm
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with publish(target) as file:
        file.write("whole")
        assert os.listdir(target.parent) == [looks[1].name]
    assert target.read_text() == "whole"


def test_what_is_no_regular_file_is_ignored(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".link{TEMPORARY_SUFFIX}").symlink_to(victim)
    os.mkfifo(tmp_path / f".fifo{TEMPORARY_SUFFIX}")
    (tmp_path / f".directory{TEMPORARY_SUFFIX}").mkdir()
    before = sorted(os.listdir(tmp_path))
    assert list(stale_temporaries(tmp_path)) == []
    assert remove_stale_temporaries(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == before


def test_other_names_are_ignored(tmp_path: Path) -> None:
    for name in ("result.json", f"shown{TEMPORARY_SUFFIX}", f".x{TEMPORARY_SUFFIX}.bak", ".hidden"):
        (tmp_path / name).touch()
    assert remove_stale_temporaries(tmp_path) == []
    assert len(os.listdir(tmp_path)) == 4


def test_directories_below_are_not_searched(target: Path, tmp_path: Path) -> None:
    stale = kill_in_block(target)
    (tmp_path / "below").mkdir()
    hidden = stale.rename(tmp_path / "below" / stale.name)
    assert remove_stale_temporaries(tmp_path) == []
    assert hidden.exists()


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(stale_temporaries(tmp_path / "no"))
    with pytest.raises(FileNotFoundError):
        remove_stale_temporaries(tmp_path / "no")


@pytest.mark.parametrize("call", ["scandir", "open", "unlink"])
def test_a_directory_that_is_swapped_for_a_link_meanwhile_takes_no_other_directorys_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory, other = tmp_path / "directory", tmp_path / "other"
    directory.mkdir()
    stale = kill_in_block(directory / "result.json")
    other.mkdir()
    (other / stale.name).write_text("only copy")
    real = getattr(os, call)

    def swapped(*args: Any, **options: Any) -> Any:
        if not directory.is_symlink() and (call != "open" or os.fspath(args[0]) != os.fspath(directory)):
            directory.rename(tmp_path / "aside")
            directory.symlink_to(other)
        return real(*args, **options)

    monkeypatch.setattr(os, call, swapped)
    remove_stale_temporaries(directory)
    monkeypatch.undo()
    assert (other / stale.name).read_text() == "only copy"
    assert os.listdir(tmp_path / "aside") == []
