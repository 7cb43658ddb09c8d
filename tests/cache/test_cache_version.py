"""A new version purges exactly once, and only files of a cache are ever removed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cached import files, getter, refuse
from support.processes import Child, has_permission_to_mount, run_forked

from sharedvol import CacheError, CacheTimeout, FileLock
from sharedvol.cache import Cache
from sharedvol.cache.versioning import directory_name


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start_at_once(directory: Path, versions: list[str]) -> list[bool]:
    """What processes that all start at one moment say of ``purged``."""
    wait, go = os.pipe()

    def work(connection: Any, version: str) -> None:
        os.close(go)
        os.read(wait, 1)
        cache = Cache(directory, version=version)
        connection.send((cache.purged, cache.peek("old")))

    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(lambda c, version=version: work(c, version)))  # type: ignore[misc]
            for version in versions
        ]
        os.close(wait)
        os.close(go)
        answers = [child.receive() for child in children]
    assert all(old is None for _, old in answers)
    return [purged for purged, _ in answers]


def test_of_all_that_start_with_a_new_version_one_purges(directory: Path) -> None:
    for turn in range(5):
        Cache(directory, version="other").get("old", lambda: 1)
        assert sum(start_at_once(directory, [f"v{turn}"] * 16)) == 1
        assert files(directory) == []
        assert (directory / "version").read_text() == f"v{turn}\n"


def test_of_all_that_start_first_one_makes_the_cache(directory: Path) -> None:
    assert sum(start_at_once(directory, ["1"] * 16)) == 1


def test_the_same_version_purges_nothing(directory: Path) -> None:
    assert Cache(directory, version="1").purged
    Cache(directory, version="1").get("a", lambda: 1)
    again = Cache(directory, version="1")
    assert not again.purged
    assert again.get("a", refuse) == 1


def test_a_purge_takes_all_that_is_in_entries_and_nothing_else(directory: Path, tmp_path: Path) -> None:
    Cache(directory, version="1").get("a", lambda: 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (directory / "entries" / "link").symlink_to(outside)
    (directory / "entries" / "deep" / "deeper").mkdir(parents=True)
    (directory / "entries" / "deep" / "deeper" / "link").symlink_to(outside / "file")
    os.mkfifo(directory / "entries" / "fifo")
    (directory / "neighbour").write_text("kept")
    assert Cache(directory, version="2").purged
    assert os.listdir(directory / "entries") == [directory_name("2")]
    assert (directory / "neighbour").read_text() == "kept"
    assert (outside / "file").read_text() == "kept"


def test_a_replica_of_the_old_version_goes_on_without_feeding_the_new(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Cache(directory, version="1")
    assert old.get("a", lambda: "old") == "old"
    new = Cache(directory, version="2")
    assert old.get("a", lambda: "older") == "older"
    assert old.get("a", lambda: "oldest") == "oldest"
    with old.open("f", lambda file: file.write(b"old")) as file:
        assert file.read() == b"old"
    assert new.peek("a") is None
    assert new.get("a", lambda: "new") == "new"
    assert old.get("a", lambda: "old") == "old"
    assert os.listdir(directory / "entries") == [directory_name("2")]
    assert len(files(directory)) == 1
    assert len(caplog.records) == 1
    assert "another version has taken over from '1'" in caplog.text
    assert old.trim().locks == 0
    assert old.statistics().entries == 0


def test_a_computation_that_ends_after_the_purge_is_returned_and_not_stored(directory: Path) -> None:
    old = Cache(directory, version="1", max_bytes=10**6)
    for end in ("value", "fail"):
        Cache(directory, version="1")
        with getter(old, "a") as child:
            assert child.receive() == "computing"
            assert Cache(directory, version="2").purged
            child.send(end)
            assert child.receive()[0] == ("got" if end == "value" else "failed")
        assert os.listdir(directory / "entries") == [directory_name("2")]
        assert files(directory) == []


def test_who_waits_for_a_computation_that_is_purged_computes_himself(directory: Path) -> None:
    old = Cache(directory, version="1")
    with getter(old, "a") as first:
        assert first.receive() == "computing"
        with getter(old, "a") as second:
            Cache(directory, version="2")
            first.send("first")
            assert first.receive() == ("got", "first")
            assert second.receive() == "computing"
            second.send("second")
            assert second.receive() == ("got", "second")


def test_the_old_version_comes_back(directory: Path) -> None:
    old = Cache(directory, version="1")
    Cache(directory, version="2").get("a", lambda: 2)
    assert Cache(directory, version="1").purged
    assert old.get("a", lambda: 1) == 1
    assert old.get("a", refuse) == 1


def test_entries_that_somebody_removes_are_made_again(directory: Path) -> None:
    cache = Cache(directory, version="1", max_bytes=10**6)
    for _ in range(2):
        assert cache.get("a", lambda: 1) == 1
        assert cache.get("a", refuse) == 1
        for path in sorted((directory / "entries").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    (directory / "entries").rmdir()
    assert cache.get("a", lambda: 1) == 1
    assert cache.get("a", refuse) == 1


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("name", ["report.csv", ".hidden", "entries"])
def test_a_directory_that_is_no_cache_is_refused(directory: Path, name: str, make: Any) -> None:
    directory.mkdir()
    make(directory / name)
    with pytest.raises(CacheError, match=f"is no cache: it holds '{name}'"):
        Cache(directory, version="1")
    assert os.listdir(directory) == [name]


def test_what_a_killed_starter_left_is_no_reason_to_refuse(directory: Path) -> None:
    directory.mkdir()
    (directory / "version.lock").touch()
    (directory / ".x-y.sharedvol-tmp").touch()
    assert Cache(directory, version="1").purged
    assert sorted(os.listdir(directory)) == ["entries", "version", "version.lock"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"1", b"1\n\n", b"x" * 100_000, b"1 \n"])
def test_a_version_that_is_not_ours_is_anothers(directory: Path, content: bytes) -> None:
    Cache(directory, version="1").get("a", lambda: 1)
    (directory / "version").write_bytes(content)
    assert Cache(directory, version="1").purged
    assert Cache(directory, version="1").peek("a") is None


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("version.lock")])
def test_a_version_that_is_no_file_is_told(directory: Path, make: Any) -> None:
    Cache(directory, version="1")
    (directory / "version").unlink()
    make(directory / "version")
    with pytest.raises(CacheError, match="no regular file: remove it"):
        Cache(directory, version="1")


@pytest.mark.parametrize("below", ["entries", f"entries/{directory_name('1')}"])
def test_a_link_in_the_place_of_a_directory_is_never_followed(directory: Path, tmp_path: Path, below: str) -> None:
    cache = Cache(directory, version="1")
    outside = tmp_path / "outside"
    (outside / directory_name("1")).mkdir(parents=True)
    place = directory / below
    place.rename(tmp_path / "moved")
    place.symlink_to(outside)
    with pytest.raises(CacheError, match="symbolic link, which is never followed"):
        Cache(directory, version="1")
    assert cache.get("a", lambda: 1) == 1
    assert cache.peek("a") is None
    cache.trim()
    assert [path for path in outside.rglob("*") if not path.is_dir()] == []
    if below == "entries":
        with pytest.raises(CacheError, match="symbolic link"):
            Cache(directory, version="2")
        assert outside.joinpath(directory_name("1")).is_dir()
    else:
        assert Cache(directory, version="2").purged
        assert outside.is_dir()


def test_a_purger_that_hangs_is_waited_for_as_long_as_one_likes(directory: Path) -> None:
    Cache(directory, version="1")

    def hold(connection: Any) -> None:
        with FileLock(directory / "version.lock"):
            connection.send("held")
            connection.recv()

    with Child(hold) as child:
        assert child.receive() == "held"
        with pytest.raises(CacheTimeout, match="is being purged"):
            Cache(directory, version="2", timeout=0.05)
        child.send("continue")
    assert Cache(directory, version="2", timeout=0.05).purged


def test_a_directory_that_cannot_be_written_is_told(directory: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    Cache(directory, version="1")

    def as_another() -> str:
        os.setresuid(1000, 1000, 1000)
        try:
            Cache(directory, version="1")
        except CacheError as error:
            return str(error)
        return "made"

    for path in [directory, *directory.parents][:3]:
        path.chmod(0o755)
    assert "give user 1000 access" in run_forked(as_another)


def test_a_read_only_volume_is_told(directory: Path) -> None:
    if not has_permission_to_mount():
        pytest.skip("needs permission to mount")
    Cache(directory, version="1").get("a", lambda: 1)

    def work() -> tuple[str, Any]:
        cache = Cache(directory, version="1")
        leave_mount_namespace()
        assert os.system(f"mount --make-rprivate / && mount --bind {directory} {directory}") == 0
        assert os.system(f"mount -o remount,ro,bind {directory}") == 0
        got = cache.get("a", refuse), cache.get("b", lambda: 2), cache.get("b", lambda: 3)
        try:
            Cache(directory, version="1")
        except CacheError as error:
            return str(error), got
        return "made", got

    message, got = run_forked(work)
    assert "mount the volume read-write" in message
    assert got == (1, 2, 3)  # what was there is read; all else is computed


def leave_mount_namespace() -> None:
    """unshare(2), which Python 3.11 does not have."""
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS


def test_late_writers_do_not_keep_a_purge_from_ending(directory: Path) -> None:
    """Writers of the old version continue as fast as they can while it is purged."""
    end = directory.parent / "end"

    def write(connection: Any) -> None:
        cache = Cache(directory, version="1", max_bytes=100_000)
        cache.get("0", lambda: "x")
        connection.send("begun")
        number = 0
        while not end.exists():
            cache.get(str(number := number + 1), lambda: "x" * 100)

    with contextlib.ExitStack() as stack:
        stack.callback(end.touch)
        writers = [stack.enter_context(Child(write)) for _ in range(2)]
        for child in writers:
            assert child.receive() == "begun"
        for turn in range(5):
            Cache(directory, version=f"new{turn}").get("a", lambda: 1)
            assert os.listdir(directory / "entries") == [directory_name(f"new{turn}")]
            Cache(directory, version="1").get("a", lambda: 1)
        Cache(directory, version="last")
        end.touch()
        for child in writers:
            assert child.wait() == 0
    assert os.listdir(directory / "entries") == [directory_name("last")]
    assert files(directory) == []


def test_a_directory_that_is_swapped_while_it_is_purged_loses_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's directory is exchanged for a link at each of the steps of a purge."""
    real = {name: getattr(os, name) for name in ("open", "mkdir", "listdir", "stat", "unlink", "rename")}
    number, done = 0, True
    while done:
        top, other = tmp_path / f"cache{number}", tmp_path / f"other{number}"
        Cache(top, version="1").get("key", lambda: "value")
        (other / "entries").mkdir(parents=True)
        (other / "entries/result").write_text("only copy")
        left, done = number, False

        def around(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                nonlocal left, done
                left -= 1
                if left < 0 and not done:
                    done = True
                    real["rename"](top, tmp_path / f"aside{number}")  # noqa: B023
                    top.symlink_to(other)  # noqa: B023
                return call(*args, **options)

            return called

        with monkeypatch.context() as patch:
            for name, call in real.items():
                patch.setattr(os, name, around(call))
            with contextlib.suppress(CacheError):
                Cache(top, version="2")
        assert (other / "entries/result").read_text() == "only copy", f"step {number}"
        number += 1
    assert number > 20
