"""What a cache returns, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cached import entry_path, files, refuse
from support.processes import run_forked, run_python

import sharedvol
from sharedvol import CacheError, CacheValueError
from sharedvol.cache import BYTES, JSON, PICKLE, TEXT, Cache, Codec
from sharedvol.cache.keys import name_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Cache:
    return Cache(directory, version="1")


def test_a_value_is_computed_once_and_shared(cache: Cache, directory: Path) -> None:
    assert cache.get("a", lambda: {"b": [1, None]}) == {"b": [1, None]}
    assert cache.get("a", refuse) == {"b": [1, None]}
    assert Cache(directory, version="1").get("a", refuse) == {"b": [1, None]}
    assert run_forked(lambda: cache.get("a", refuse)) == {"b": [1, None]}


def test_none_is_a_value(cache: Cache) -> None:
    assert cache.get("a", lambda: None) is None
    assert cache.get("a", refuse) is None
    assert cache.peek("a", "absent") is None


@pytest.mark.parametrize(
    ("codec", "value"),
    [(BYTES, b"\0\xff"), (BYTES, b""), (TEXT, "ä\ud800\n"), (TEXT, ""), (JSON, [1.5, "ä"]), (PICKLE, {1: {2}})],
)
def test_each_codec_gives_back_what_it_got(directory: Path, codec: Codec, value: Any) -> None:
    cache = Cache(directory, version="1", codec=codec)
    assert cache.get("a", lambda: value) == value
    assert cache.get("a", refuse) == value


def test_who_computed_gets_what_all_others_read(cache: Cache) -> None:
    assert cache.get("a", lambda: (1, {2: 3})) == [1, {"2": 3}]


def test_codecs_do_not_read_each_others_entries(directory: Path) -> None:
    assert Cache(directory, version="1", codec=TEXT).get("a", lambda: "text") == "text"
    assert Cache(directory, version="1").get("a", lambda: 7) == 7
    assert Cache(directory, version="1", codec=PICKLE).peek("a") is None


def test_pickle_is_never_the_default() -> None:
    assert Cache.__init__.__kwdefaults__["codec"] is JSON
    assert "run code" in Path(sharedvol.__file__).with_name("cache").joinpath("codecs.py").read_text()


@pytest.mark.parametrize(
    ("codec", "value"), [(JSON, {1, 2}), (BYTES, "text"), (TEXT, b"bytes"), (PICKLE, lambda: None), (JSON, b"")]
)
def test_a_value_the_codec_does_not_know_is_told_with_its_key(directory: Path, codec: Codec, value: Any) -> None:
    cache = Cache(directory, version="1", codec=codec)
    with pytest.raises(CacheValueError, match=re.escape("('user', 'ann')")) as caught:
        cache.get(("user", "ann"), lambda: value)
    assert codec.name in str(caught.value)
    assert files(directory) == []


KEYS = st.recursive(st.text() | st.binary(), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


@given(KEYS, KEYS)
def test_different_keys_have_different_names(one: Any, other: Any) -> None:
    assert (name_of(one, "json") == name_of(other, "json")) == (one == other)
    assert name_of(one, "json") != name_of(one, "file")


@pytest.mark.parametrize("key", [None, 1, ["a"], ("a", 1), {"a"}])
def test_a_key_of_another_type_is_refused(cache: Cache, key: Any) -> None:
    with pytest.raises(TypeError, match="str, bytes, or a tuple"):
        cache.get(key, refuse)


def test_a_key_may_be_a_tuple_whose_parts_run_into_each_other(cache: Cache) -> None:
    assert cache.get(("ab", "c"), lambda: 1) == 1
    assert cache.get(("a", "bc"), lambda: 2) == 2
    assert cache.get((b"ab", "c"), lambda: 3) == 3


def test_peek_computes_nothing(cache: Cache) -> None:
    assert cache.peek("a") is None
    assert cache.peek("a", 7) == 7
    cache.get("a", lambda: 1)
    assert cache.peek("a", 7) == 1


def test_delete_removes_all_that_the_key_has(cache: Cache, directory: Path) -> None:
    cache.get("a", lambda: 1)
    cache.open("a", lambda file: file.write(b"x")).close()
    assert len(files(directory)) == 2
    assert cache.delete("a") is True
    assert cache.delete("a") is False
    assert files(directory) == []
    assert cache.get("a", lambda: 2) == 2


def test_nothing_but_entries_stays(cache: Cache, directory: Path) -> None:
    for number in range(20):
        cache.get(str(number), lambda: number)  # noqa: B023
    with pytest.raises(ZeroDivisionError):
        cache.get("fails", lambda: 1 / 0)
    assert sorted(Path(name).name for name in files(directory)) == sorted(
        name_of(str(number), "json") for number in range(20)
    )


def test_a_failure_goes_to_the_caller_and_is_not_stored(cache: Cache) -> None:
    for error in (ZeroDivisionError, StopIteration, KeyboardInterrupt, GeneratorExit):

        def fail(error: type[BaseException] = error) -> None:
            raise error("as told")

        with pytest.raises(error):
            cache.get("a", fail)
    assert cache.get("a", lambda: 1) == 1


def test_a_large_entry_is_a_file(cache: Cache) -> None:
    def write(file: Any) -> None:
        for number in range(3000):
            file.write(b"%8d" % number * 100)

    for turn in (write, refuse):
        with cache.open("big", turn) as file:
            assert file.seek(0, io.SEEK_END) == 2_400_000
            assert file.seek(800 * 7) == 5600
            assert file.read(8) == b"       7"
            assert file.tell() == 5608
            file.seek(-8, io.SEEK_CUR)
            assert file.read(8) == b"       7"
            file.seek(0)
            assert len(file.read()) == 2_400_000
            assert file.read() == b""
            assert not file.writable()


def test_a_large_entry_can_be_written_out_of_order(cache: Cache) -> None:
    def write(file: Any) -> None:
        file.write(b"0123456789")
        file.seek(2)
        file.write(b"xx")
        file.seek(8)
        file.truncate()
        assert file.tell() == 8

    cache.open("a", write).close()
    with cache.open("a", refuse) as file:
        assert file.read() == b"01xx4567"

    def archive(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("a", "b" * 1000)

    cache.open("zip", archive).close()
    with cache.open("zip", refuse) as file, zipfile.ZipFile(file) as made:
        assert made.read("a") == b"b" * 1000


def test_an_empty_file_is_an_entry(cache: Cache) -> None:
    cache.open("a", lambda file: None).close()
    with cache.open("a", refuse) as file:
        assert file.read() == b""


def test_a_writer_that_fails_leaves_nothing(cache: Cache, directory: Path) -> None:
    def write(file: Any) -> None:
        file.write(b"half" * 100_000)
        raise RuntimeError("as told")

    with pytest.raises(RuntimeError):
        cache.open("a", write)
    assert files(directory) == []


def test_a_file_stays_whole_when_its_entry_goes(cache: Cache) -> None:
    for turn in (lambda file: file.write(b"x" * 500_000), refuse):
        with cache.open("a", turn) as file:
            cache.delete("a")
            assert file.read() == b"x" * 500_000
        cache.open("a", lambda file: file.write(b"x" * 500_000)).close()


def test_a_function_is_memoized(cache: Cache) -> None:
    calls = []

    @cache.memoize(lambda number: ("square", str(number)))
    def square(number: int) -> int:
        """Squared."""
        calls.append(number)
        return number**2

    assert [square(3), square(4), square(3)] == [9, 16, 9]
    assert calls == [3, 4]
    assert square.__doc__ == "Squared."

    @cache.memoize(lambda number: ("cube", str(number)))
    async def cube(number: int) -> int:
        calls.append(number)
        return number**3

    async def both() -> list[int]:
        return [await cube(3), await cube(3)]

    assert asyncio.run(both()) == [27, 27]
    assert calls == [3, 4, 3]


def test_statistics_count_entries_and_what_this_process_did(cache: Cache, directory: Path) -> None:
    cache.get("a", lambda: 1)
    cache.get("a", refuse)
    cache.get("b", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        cache.get("c", lambda: 1 / 0)
    found = cache.statistics()
    assert (found.entries, found.hits, found.waits, found.computed) == (2, 1, 0, 3)
    assert found.bytes == sum(entry_path(directory, key).stat().st_size for key in "ab")
    in_child = run_forked(cache.statistics)
    assert (in_child.entries, in_child.hits, in_child.computed) == (2, 0, 0)


def test_a_cache_can_be_sent_to_another_process(cache: Cache, directory: Path) -> None:
    copy = pickle.loads(pickle.dumps(Cache(directory, version="1", max_age=60, max_bytes=10**6, timeout=5)))
    assert repr(copy) == repr(cache)
    cache.get("a", lambda: 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(copy.peek, ("a",)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"version": ""},
        {"version": "a\nb"},
        {"version": " a"},
        {"version": "x" * 201},
        {"max_bytes": 0},
        {"max_age": 0},
        {"max_age": float("nan")},
        {"timeout": -1},
        {"timeout": float("inf")},
    ],
)
def test_an_argument_that_means_nothing_is_refused(directory: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(next(iter(options)))):
        Cache(directory, **{"version": "1", **options})
    assert not directory.exists()


def test_a_missing_parent_is_told(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="mount the volume"):
        Cache(tmp_path / "missing" / "cache", version="1")


def test_who_has_no_cache_does_not_load_it() -> None:
    code = "import sys, sharedvol; print('sharedvol.cache' in sys.modules, sharedvol.Cache.__name__)"
    assert run_python(code) == "False Cache"
