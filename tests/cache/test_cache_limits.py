"""Size and age: never more than allowed, the least recently used first, nothing too old, whatever the clock does."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.cached import entry_path, files, getter, lock_path, refuse
from support.processes import LIMIT, Child

from sharedvol.cache import BYTES, Cache
from sharedvol.cache.entry_file import HEADER_BYTES

LIMIT_BYTES = 10 * (HEADER_BYTES + 810)  # ten entries of 1000 bytes


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Cache:
    return Cache(directory, version="1", max_bytes=LIMIT_BYTES, codec=BYTES)


def stored(directory: Path) -> int:
    """The bytes of all entries."""
    (version,) = (directory / "entries").iterdir()
    return sum((version / name).stat().st_size for name in files(directory))


def put(cache: Cache, key: str, size: int = 810) -> None:
    cache.get(key, lambda: b"x" * size)


def used(directory: Path, key: str, seconds_ago: float) -> None:
    """Let an entry have been used some time ago."""
    at = time.time() - seconds_ago
    os.utime(entry_path(directory, key, "bytes"), (at, at))


def tally(directory: Path) -> Path:
    (version,) = (directory / "entries").iterdir()
    return version / "tally"


def test_what_is_stored_never_exceeds_the_limit(cache: Cache, directory: Path) -> None:
    rng = random.Random(7)
    for number in range(120):
        put(cache, str(number), rng.choice([0, 100, 810, 3000, LIMIT_BYTES - HEADER_BYTES]))
        assert stored(directory) <= LIMIT_BYTES
    assert cache.statistics().bytes == stored(directory)


def test_an_entry_that_fills_the_limit_is_stored(cache: Cache, directory: Path) -> None:
    put(cache, "a", LIMIT_BYTES - HEADER_BYTES)
    assert stored(directory) == LIMIT_BYTES
    assert cache.get("a", refuse)


def test_the_least_recently_used_go_first(cache: Cache, directory: Path) -> None:
    for number in range(10):
        put(cache, str(number))
        used(directory, str(number), 1000 - number)
    assert stored(directory) == LIMIT_BYTES
    assert cache.get("0", refuse)  # used now
    put(cache, "new")
    assert [number for number in range(10) if not entry_path(directory, str(number), "bytes").exists()] == [1]
    put(cache, "newer", 1810)
    assert [number for number in range(10) if not entry_path(directory, str(number), "bytes").exists()] == [1, 2, 3]
    assert cache.get("new", refuse)


def test_a_use_is_noted_once_a_minute_at_most(cache: Cache, directory: Path) -> None:
    put(cache, "a")
    path = entry_path(directory, "a", "bytes")
    used(directory, "a", 50)
    before = path.stat().st_mtime_ns
    cache.get("a", refuse)
    assert path.stat().st_mtime_ns == before
    for seconds in (70, -1000):  # the clock was set back since
        used(directory, "a", seconds)
        cache.get("a", refuse)
        assert abs(path.stat().st_mtime - time.time()) < 30


def test_many_small_entries_are_not_counted_for_each_new_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(directory, version="1", max_bytes=200 * (HEADER_BYTES + 10), codec=BYTES)
    scans = []
    entries = cache._storage.entries
    real = entries.scan
    monkeypatch.setattr(entries, "scan", lambda: (scans.append(1), real())[1])
    for number in range(500):
        put(cache, str(number), 10)
    assert stored(directory) <= 200 * (HEADER_BYTES + 10)
    assert 10 < len(scans) < 35


def test_an_entry_larger_than_the_limit_is_returned_and_said_once(
    cache: Cache, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, "small")
    for size in (LIMIT_BYTES, LIMIT_BYTES + 1):
        assert len(cache.get("big", lambda size=size: b"x" * size)) == size  # type: ignore[misc]
        with cache.open("big", lambda file, size=size: file.write(b"x" * size)) as file:  # type: ignore[misc]
            assert len(file.read()) == size
    assert cache.get("small", refuse)
    assert len(files(directory)) == 1
    assert len(caplog.records) == 1
    assert "larger than max_bytes" in caplog.text


def test_those_who_ask_for_what_cannot_be_stored_do_not_wait_for_each_other(cache: Cache) -> None:
    """Once it is known: else each would wait for nothing."""
    cache.get("big", lambda: b"x" * LIMIT_BYTES)
    both = threading.Barrier(2)

    def compute() -> bytes:
        both.wait(LIMIT)  # both compute at one time
        return b"x" * LIMIT_BYTES

    threads = [threading.Thread(target=cache.get, args=("big", compute), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert not both.broken
    assert cache.get("big", lambda: b"small") == b"small"
    assert cache.get("big", refuse) == b"small"


def test_an_entry_that_is_replaced_counts_once(directory: Path) -> None:
    cache = Cache(directory, version="1", max_bytes=LIMIT_BYTES, max_age=0.000001, codec=BYTES)
    for number in range(9):
        put(cache, str(number))
    for _ in range(50):
        put(cache, "a")
    assert len(files(directory)) == 10  # nothing had to go


@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", b"sharedvol-tally 1 " + b"0" * 20 + b" other-boot" + b" " * 26 + b"\n"]
)
def test_a_tally_that_cannot_be_believed_is_made_anew(cache: Cache, directory: Path, content: bytes | None) -> None:
    for number in range(10):
        put(cache, str(number))
    tally(directory).unlink()
    if content is not None:
        tally(directory).write_bytes(content)
    put(cache, "new")
    assert stored(directory) <= LIMIT_BYTES


def test_what_is_stored_without_a_limit_counts_for_who_has_one(cache: Cache, directory: Path) -> None:
    put(cache, "a")
    unlimited = Cache(directory, version="1", codec=BYTES)
    for number in range(30):
        put(unlimited, str(number))
    put(cache, "b")
    assert stored(directory) <= LIMIT_BYTES


def test_entries_that_are_removed_make_room(cache: Cache, directory: Path) -> None:
    for number in range(10):
        put(cache, str(number))
    for number in range(5):
        cache.delete(str(number))
    for number in range(5):
        put(cache, f"new{number}")
    assert len(files(directory)) == 10


def test_a_lower_limit_holds_from_the_next_entry_or_trim(cache: Cache, directory: Path) -> None:
    for number in range(10):
        put(cache, str(number))
    smaller = Cache(directory, version="1", max_bytes=LIMIT_BYTES // 2, codec=BYTES)
    put(smaller, "new")
    assert stored(directory) <= LIMIT_BYTES // 2
    smallest = Cache(directory, version="1", max_bytes=2500, codec=BYTES)
    assert smallest.trim().evicted >= 2
    assert stored(directory) <= 2500


def test_processes_that_store_at_once_stay_below_the_limit(cache: Cache, directory: Path) -> None:
    def work(connection: Any, number: int) -> None:
        rng = random.Random(number)
        for turn in range(30):
            put(cache, f"{number}-{turn}", rng.choice([10, 810, 2810]))
            if stored_now(directory) > LIMIT_BYTES:
                connection.send("too much")
        connection.send("done")

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(lambda c, n=n: work(c, n))) for n in range(4)]  # type: ignore[misc]
        assert [child.receive() for child in children] == ["done"] * 4
    assert stored(directory) <= LIMIT_BYTES
    assert int(tally(directory).read_text().split()[2]) >= stored(directory)


def stored_now(directory: Path) -> int:
    """As `stored`, where entries come and go: what one look sees, less what went meanwhile."""
    (version,) = (directory / "entries").iterdir()
    sizes = {}
    for name in files(directory):
        if len(Path(name).name) == 64:
            with contextlib.suppress(FileNotFoundError):
                sizes[name] = (version / name).stat().st_size
    return sum(size for name, size in sizes.items() if (version / name).exists())


def test_an_eviction_does_no_harm_to_who_reads(cache: Cache) -> None:
    with cache.open("a", lambda file: file.write(b"x" * 5000)) as file:
        for number in range(20):
            put(cache, str(number))
        assert file.read() == b"x" * 5000


class Clock:
    """`time.time` and `time.time_ns` under the test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(self.offset * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_an_entry_that_is_too_old_is_computed_anew(directory: Path, clock: Clock) -> None:
    cache = Cache(directory, version="1", max_age=100)
    assert cache.get("a", lambda: 1) == 1
    clock.offset = 50
    assert cache.get("a", refuse) == 1  # reading does not make it younger
    clock.offset = 99
    assert cache.get("a", refuse) == 1
    clock.offset = 101
    assert cache.peek("a") is None
    assert cache.get("a", lambda: 2) == 2
    clock.offset = 150
    assert cache.get("a", refuse) == 2
    cache.open("f", lambda file: file.write(b"1")).close()
    clock.offset = 251
    with cache.open("f", lambda file: file.write(b"2")) as file:
        assert file.read() == b"2"


def test_an_entry_from_the_future_is_too_old(directory: Path, clock: Clock) -> None:
    cache = Cache(directory, version="1", max_age=100)
    clock.offset = 3600
    cache.get("a", lambda: 1)
    clock.offset = 0
    assert cache.get("a", lambda: 2) == 2
    clock.offset = 0.5
    cache.get("b", lambda: 1)
    clock.offset = 0  # a clock that is slewed, not set
    assert cache.get("b", refuse) == 1


def test_without_an_age_nothing_is_too_old(directory: Path, clock: Clock) -> None:
    cache = Cache(directory, version="1")
    cache.get("a", lambda: 1)
    for offset in (10**9, -(10**9)):
        clock.offset = offset
        assert cache.get("a", refuse) == 1


def test_trim_removes_what_is_too_old_and_what_the_dead_left(directory: Path, clock: Clock) -> None:
    cache = Cache(directory, version="1", max_age=100)
    cache.get("old", lambda: 1)
    clock.offset = 60
    cache.get("young", lambda: 2)
    for key in ("dead", "young"):
        with getter(cache, key) as child:
            if key == "dead":
                assert child.receive() == "computing"
            child.kill()
    lock_path(directory, "young").touch()
    entry_path(directory, "dead").with_name(".dead-1.sharedvol-tmp").write_text("half")
    living = entry_path(directory, "living")
    with getter(cache, "living") as child:
        assert child.receive() == "computing"
        clock.offset = 120
        done = cache.trim()
        assert (done.expired, done.evicted, done.temporaries, done.locks) == (1, 0, 1, 2)
        assert lock_path(directory, "living").exists()
        child.send("value")
        assert child.receive() == ("got", "value")
    assert sorted(Path(name).name for name in files(directory)) == sorted(
        [living.name, entry_path(directory, "young").name]
    )
    again = cache.trim()
    assert (again.expired, again.evicted, again.temporaries, again.locks) == (0, 0, 0, 0)


class Model(RuleBasedStateMachine):
    """A cache without limits is a dictionary."""

    keys = st.sampled_from(["a", b"a", ("a",), "b", ("a", "b")])

    @initialize()
    def make(self) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.caches = [Cache(f"{self.directory.name}/c", version="1", max_bytes=limit) for limit in (None, 10**6)]
        self.model: dict[Any, Any] = {}

    @rule(key=keys, value=st.integers(0, 9), which=st.integers(0, 1))
    def get(self, key: Any, value: int, which: int) -> None:
        assert self.caches[which].get(key, lambda: value) == self.model.setdefault(key, value)

    @rule(key=keys, which=st.integers(0, 1))
    def fail(self, key: Any, which: int) -> None:
        try:
            assert self.caches[which].get(key, lambda: 1 // 0) == self.model[key]
        except ZeroDivisionError:
            assert key not in self.model

    @rule(key=keys, which=st.integers(0, 1))
    def delete(self, key: Any, which: int) -> None:
        assert self.caches[which].delete(key) == (self.model.pop(key, None) is not None)

    @rule(key=keys, data=st.binary(max_size=20))
    def damage(self, key: Any, data: bytes) -> None:
        path = entry_path(Path(self.directory.name, "c"), key)
        if path.exists():
            path.write_bytes(data)
            del self.model[key]
            assert self.caches[0].peek(key) is None
            self.caches[0].delete(key)

    @rule(which=st.integers(0, 1))
    def trim(self, which: int) -> None:
        self.caches[which].trim()

    @invariant()
    def is_the_same(self) -> None:
        for key, value in getattr(self, "model", {}).items():
            assert self.caches[0].peek(key) == value
            assert self.caches[1].statistics().entries == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()


Model.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestModel = Model.TestCase
