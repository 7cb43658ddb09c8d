"""A get, a trim or a purge that is killed at any step: nothing is wrong, and nothing is left that blocks others."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.cached import entry_path, files, refuse
from support.processes import Child, blocked, wait_until

from sharedvol.cache import BYTES, Cache
from sharedvol.cache.entry_file import HEADER_BYTES
from sharedvol.cache.versioning import directory_name

CALLS = ["mkdir", "fchmod", "rename", "link", "unlink", "rmdir", "fsync", "open", "write", "pwrite", "utime"]
MAX_BYTES = 3 * (HEADER_BYTES + 100)


def dying(number: int, work: Callable[[], object]) -> Child:
    """A child that is killed before its ``number``-th system call that changes anything: after the one before it."""

    def killed(_: Connection) -> None:
        left = number

        def around(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return called

        for name in CALLS:
            setattr(os, name, around(getattr(os, name)))
        fcntl.flock = around(fcntl.flock)
        fcntl.fcntl = around(fcntl.fcntl)
        work()

    return Child(killed)


def died(child: Child) -> bool:
    """Reap it; False if it had no such step, and came to its end."""
    status = child.wait()
    child.kill()  # reaped already: tells the ``with`` that its status is no failure
    with child:
        pass
    assert status in (0, -signal.SIGKILL)
    return status != 0


def die_at(number: int, work: Callable[[], object]) -> bool:
    return died(dying(number, work))


def cache_at(path: Path, **options: Any) -> Cache:
    return Cache(path, version="1", max_bytes=MAX_BYTES, codec=BYTES, timeout=30, **options)


def value(letter: str) -> bytes:
    return letter.encode() * 100


@contextmanager
def scene(kind: str) -> Iterator[Path]:
    """A cache in some state."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "cache")
        cache = cache_at(path)
        if kind == "no room":
            for number, letter in enumerate("xyz"):
                cache.get(letter, lambda letter=letter: value(letter))  # type: ignore[misc]
                os.utime(entry_path(path, letter, "bytes"), (number, number))
        if kind == "damaged":
            cache.get("a", lambda: value("a"))
            entry_path(path, "a", "bytes").write_bytes(b"damaged")
        if kind == "old lock":
            cache.get("a", lambda: value("a"))
            cache.delete("a")
            entry_path(path, "a", "bytes").with_suffix(".lock").touch()
        yield path


def stored(path: Path) -> int:
    version = path / "entries" / directory_name("1")
    return sum((version / name).stat().st_size for name in files(path) if len(Path(name).name) == 64)


@pytest.mark.parametrize(
    ("kind", "large"),
    [("first", False), ("no room", False), ("damaged", False), ("old lock", False), ("no room", True)],
)
def test_a_get_killed_at_any_step_leaves_nothing_wrong(kind: str, large: bool) -> None:
    def get(path: Path, compute: Callable[[], bytes] = lambda: value("a")) -> bytes:
        cache = cache_at(path)
        if not large:
            return cache.get("a", compute)
        with cache.open("a", lambda file: file.write(compute())) as file:
            return file.read()

    number = 0
    while True:
        with scene(kind) as path:
            killed = die_at(number, lambda path=path: get(path))  # type: ignore[misc]
            assert stored(path) <= MAX_BYTES, number
            assert get(path) == value("a"), number  # the killed process's value, or computed again
            assert get(path, refuse) == value("a"), number
            cache = cache_at(path)
            for letter in "bcde":
                assert cache.get(letter, lambda letter=letter: value(letter)) == value(letter)  # type: ignore[misc]
                assert stored(path) <= MAX_BYTES, number
            cache.trim()
            assert [name for name in files(path) if len(Path(name).name) != 64] == [], number
            assert stored(path) == MAX_BYTES, number  # what is left makes no room smaller
            if not killed:
                break
        number += 1
    assert number > 45


def test_a_computer_killed_at_any_step_is_replaced_by_one_who_waits() -> None:
    """The other one waits from the time on when the first computes: it gets the value, and nothing stays."""
    number, waited = 0, 0
    while True:
        with scene("first") as path:
            begun = path.parent / "begun"

            def compute(path: Path = path, begun: Path = begun) -> bytes:
                begun.touch()
                lock = entry_path(path, "a", "bytes").with_suffix(".lock")
                wait_until(lambda: blocked(lock) > 0, "the other one")
                return value("a")

            def wait(connection: Connection, path: Path = path) -> None:
                connection.send(cache_at(path).get("a", lambda: value("a")))

            first = dying(number, lambda: cache_at(path).get("a", compute))
            wait_until(lambda: begun.exists() or has_ended(first), "a computation, or the end")  # noqa: B023
            waited += begun.exists()
            with Child(wait) as other:
                assert other.receive() == value("a"), number
            killed = died(first)
            assert cache_at(path).get("a", refuse) == value("a")
            cache_at(path).trim()
            assert len(files(path)) == 1, number
            if not killed:
                break
        number += 1
    assert number > 40
    assert waited > 15


def has_ended(child: Child) -> bool:
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_a_trim_killed_at_any_step_is_made_good_by_the_next() -> None:
    number = 0
    while True:
        with scene("no room") as path:
            smaller = {"version": "1", "max_bytes": MAX_BYTES // 2, "codec": BYTES}
            fan = entry_path(path, "x", "bytes").parent
            (fan / ("0" * 64 + ".lock")).touch()
            (fan / ".x-y.sharedvol-tmp").touch()
            killed = die_at(number, lambda: Cache(path, **smaller).trim())  # noqa: B023
            cache = Cache(path, **smaller)  # type: ignore[arg-type]
            cache.trim()
            assert len(files(path)) == 1
            assert cache.get("z", refuse) == value("z")
            if not killed:
                break
        number += 1
    assert number > 40


@pytest.mark.parametrize("kind", ["nothing", "empty", "another version"])
def test_a_purge_killed_at_any_step_is_done_by_the_next(kind: str, tmp_path: Path) -> None:
    number = 0
    while True:
        path = tmp_path / f"{number}" / "cache"
        path.parent.mkdir()
        if kind == "empty":
            path.mkdir()
        if kind == "another version":
            old = Cache(path, version="0")
            for letter in "xyz":
                old.get(letter, lambda letter=letter: letter)  # type: ignore[misc]
        killed = die_at(number, lambda path=path: cache_at(path))  # type: ignore[misc]
        done = path.joinpath("version").exists() and path.joinpath("version").read_text() == "1\n"
        cache = cache_at(path)
        assert cache.purged is not done, number  # once, by him or by the next
        assert not cache_at(path).purged
        assert cache.get("a", lambda: value("a")) == value("a")
        assert sorted(os.listdir(path)) == ["entries", "version", "version.lock"]
        assert os.listdir(path / "entries") == [directory_name("1")]
        assert len(files(path)) == 1
        shutil.rmtree(path)
        if not killed:
            break
        number += 1
    assert number > 20
