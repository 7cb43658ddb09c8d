"""What callers give by mistake: another type, a decorator without parentheses, a command without ``--``."""

from __future__ import annotations

import io
import logging
import pydoc
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import sharedvol
from sharedvol import Cache, FileHolder, FileLock, LockTimeout, MigrationCoordinator, ReplicaFileHandler, Semaphore

WRONG: list[tuple[str, Callable[[Path], object]]] = [
    ("timeout '5'", lambda path: FileLock(path / "l", timeout="5")),  # type: ignore[arg-type]
    ("timeout '5'", lambda path: FileLock(path / "l").acquire(timeout="5")),  # type: ignore[arg-type]
    ("timeout '5'", lambda path: Semaphore(path / "s", 2, timeout="5")),  # type: ignore[arg-type]
    ("n '4'", lambda path: Semaphore(path / "s", "4")),  # type: ignore[arg-type]
    ("timeout '5'", lambda path: Cache(path / "c", version="1", timeout="5")),  # type: ignore[arg-type]
    ("version 1: give text, such as '1'", lambda path: Cache(path / "c", version=1)),  # type: ignore[arg-type]
    ("max_age '1h'", lambda path: Cache(path / "c", version="1", max_age="1h")),  # type: ignore[arg-type]
    ("max_bytes", lambda path: Cache(path / "c", version="1", max_bytes=[1])),  # type: ignore[arg-type]
    ("lock_timeout '30'", lambda path: MigrationCoordinator("sqlite://", path, lock_timeout="30")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("text", "make"), WRONG, ids=[text for text, _ in WRONG])
def test_a_value_of_another_type_is_an_error_that_names_it(
    text: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=f"^{text}"):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["many", "10X", "-1M", "", "1e9"])
def test_a_text_that_is_not_a_size_is_an_error(size: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_bytes .*10M"):
        Cache(tmp_path / "c", version="1", max_bytes=size)


def test_a_size_in_words_is_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", version="1", max_bytes="1k")
    assert cache.get("small", lambda: "x" * 100) == "x" * 100
    cache.get("large", lambda: "x" * 1024)
    assert cache.statistics().entries == 1
    handler = ReplicaFileHandler(tmp_path / "logs", max_bytes="1K")
    try:
        for _ in range(4):
            handler.emit(logging.LogRecord("n", 20, "", 0, "x" * 400, None, None))
    finally:
        handler.close()
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_memoize_works_without_a_function_that_makes_keys(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", version="1")
    calls: list[Any] = []

    @cache.memoize
    def bare(*args: Any, **options: Any) -> int:
        """Says it."""
        calls.append(args)
        return len(calls)

    @cache.memoize()
    def empty(*args: Any, **options: Any) -> int:
        calls.append(args)
        return -len(calls)

    assert (bare.__name__, bare.__doc__) == ("bare", "Says it.")
    assert [bare("a"), bare("a"), bare("b"), bare(1), bare("1"), bare(x=1), bare(x=1)] == [1, 1, 2, 3, 4, 5, 5]
    assert [bare((1, None)), bare((1, None)), bare(True), bare(1)] == [6, 6, 7, 3]
    assert [empty("a"), empty("a")] == [-8, -8], "of another function"
    with pytest.raises(TypeError, match=r"bare are not all text.*give memoize a function"):
        bare(object())


def test_memoize_with_a_named_function_for_the_key_decorates(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", version="1")

    def make_key(user: str) -> tuple[str, str]:
        return ("report", user)

    @cache.memoize(make_key)
    def report(user: str) -> str:
        return f"of {user}"

    assert report("a") == "of a"
    assert cache.peek(("report", "a")) == "of a"


async def test_memoize_of_an_async_function_works_without_parentheses(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", version="1")

    @cache.memoize
    async def bare(name: str) -> str:
        return f"of {name}"

    assert await bare("a") == "of a"


async def test_get_and_get_async_say_which_of_them_a_function_needs(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", version="1")

    async def compute() -> int:
        return 1

    with pytest.raises(TypeError, match=r"get_async: .*type int, which cannot be awaited.*use get"):
        await cache.get_async("k", lambda: 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="await get_async"):
        cache.get("k", compute)
    assert await cache.get_async("k", compute) == 1


def test_the_face_shows_what_it_has() -> None:
    names = ["Cache", "MigrationCoordinator", "Service", "ReplicaFileHandler"]
    assert set(sharedvol.__all__) <= set(dir(sharedvol))
    assert set(names) <= set(sharedvol.__all__)
    with redirect_stdout(io.StringIO()) as text:
        pydoc.Helper(output=text)(sharedvol)
    for name in names:
        assert f"class {name}(" in text.getvalue()
    code = "import sharedvol, sys; print([name for name in ('sharedvol.cache', 'sqlalchemy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_fenced_lock_names_its_holder_to_one_that_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with FileLock(path, fenced=True, purpose="nightly load") as holding:
        with pytest.raises(LockTimeout) as caught:
            FileLock(path, fenced=True).acquire(timeout=0)
        assert isinstance(caught.value.holder, FileHolder) and caught.value.holder.token == holding.token
    assert "nightly load" in str(caught.value) and "try again later" in str(caught.value)
    assert "longer timeout" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}", "printf", "%s", "-la"], "-la"),
        (["{}", "--timeout", "5", "printf", "--", "x"], "x"),
        (["{}", "--fenced", "--purpose", "p", "printf", "%s", "--shared"], "--shared"),
        (["--time", "5", "{}", "sh", "-c", "printf y"], "y"),
        (["{}", "--timeout=5", "--", "printf", "z"], "z"),
    ],
)
def test_the_command_of_lock_may_have_options_without_two_dashes(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sharedvol.cli", "lock", *(one.format(tmp_path / "l") for one in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
