"""Damage, hostile files, a full disk: never a wrong value, never a hang, and the service continues."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from support.cached import entry_path, files, getter, lock_path, refuse, wait_until_waiting
from support.processes import LIMIT, has_permission_to_mount, run_forked
from test_cache_version import leave_mount_namespace

from sharedvol import CacheError
from sharedvol.cache import Cache
from sharedvol.cache.entry_file import HEADER_BYTES

LARGE = b"x" * 3_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Cache:
    return Cache(directory, version="1")


def test_every_damaged_byte_is_found(cache: Cache, directory: Path) -> None:
    cache.get("a", lambda: "value")
    path = entry_path(directory, "a")
    whole = path.read_bytes()
    assert len(whole) == HEADER_BYTES + len('"value"')
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert cache.peek("a") is None, position
    path.write_bytes(whole)
    assert cache.peek("a") == "value"


def test_every_truncation_and_addition_is_found(cache: Cache, directory: Path) -> None:
    cache.get("a", lambda: "value")
    path = entry_path(directory, "a")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.peek("a") is None, length
    for more in (b"\0", b"\n", whole):
        path.write_bytes(whole + more)
        assert cache.peek("a") is None
    path.write_bytes(bytes(len(whole)))  # what a power cut leaves of a file whose data were not written
    assert cache.get("a", lambda: "new") == "new"
    assert cache.get("a", refuse) == "new"


@pytest.mark.parametrize("position", [10, HEADER_BYTES, 2_000_000, -1])
def test_damage_of_a_large_entry_is_found_before_it_is_read(cache: Cache, directory: Path, position: int) -> None:
    cache.open("a", lambda file: file.write(LARGE)).close()
    path = entry_path(directory, "a", "file")
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with cache.open("a", lambda file: file.write(b"new")) as file:
        assert file.read() == b"new"


def test_an_entry_under_the_name_of_another_is_none(cache: Cache, directory: Path) -> None:
    cache.get("a", lambda: "a")
    cache.get("b", lambda: "b")
    entry_path(directory, "b").write_bytes(entry_path(directory, "a").read_bytes())
    assert cache.peek("b") is None


def test_an_entry_that_the_codec_cannot_read_is_computed_anew(directory: Path) -> None:
    import dataclasses

    from sharedvol.cache import JSON

    def fail(_: bytes) -> None:
        raise KeyError("an older format")

    Cache(directory, version="1").get("a", lambda: 1)
    broken = dataclasses.replace(JSON, loads=fail)
    assert Cache(directory, version="1", codec=broken).peek("a") is None
    assert Cache(directory, version="1").get("a", refuse) == 1


def make_directory(path: Path) -> None:
    (path / "below").mkdir(parents=True)
    (path / "below" / "file").touch()


def make_sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link(path: Path) -> None:
    path.with_name("kept").write_text("kept")
    path.symlink_to("kept")


def make_socket(path: Path) -> None:
    os.mknod(path, 0o644 | stat.S_IFSOCK)


HOSTILE: list[Callable[[Path], object]] = [
    make_directory,
    make_sparse,
    make_dangling,
    make_link,
    make_socket,
    os.mkfifo,
    Path.touch,
]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("make", HOSTILE)
def test_what_is_no_entry_is_replaced(
    cache: Cache, directory: Path, make: Callable[[Path], object], large: bool
) -> None:
    cache.get("a", lambda: 1)
    path = entry_path(directory, "a", "file" if large else "json")
    if path.exists():
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    make(path)
    if large:
        for turn in (lambda file: file.write(b"value"), refuse):
            with cache.open("a", turn) as file:
                assert file.read() == b"value"
    else:
        assert cache.peek("a") is None
        for compute in (lambda: "value", refuse):
            assert cache.get("a", compute) == "value"
    assert path.is_file() and not path.is_symlink()
    if make is make_link:
        assert path.with_name("kept").read_text() == "kept"


@pytest.mark.parametrize("make", HOSTILE)
def test_trim_and_statistics_pass_by_what_is_no_entry(directory: Path, make: Callable[[Path], object]) -> None:
    cache = Cache(directory, version="1", max_bytes=10_000, max_age=100)
    cache.get("a", lambda: 1)
    path = entry_path(directory, "b")
    path.parent.mkdir(exist_ok=True)
    make(path)
    assert cache.delete("b") is True
    make_again = path.with_name(path.name[:2] + "0" * 62)
    if make is not make_link:
        make(make_again)
    cache.statistics()
    cache.trim()
    assert not os.path.lexists(make_again)
    assert cache.get("a", refuse) == 1


@pytest.mark.parametrize("make", [make_directory, make_dangling, os.mkfifo])
def test_a_lock_file_that_is_none_does_not_keep_from_computing(
    cache: Cache, directory: Path, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    lock = lock_path(directory, "a")
    lock.parent.mkdir()
    make(lock)
    assert cache.get("a", lambda: 1) == 1
    assert cache.get("a", refuse) == 1
    assert "nothing can be locked" in caplog.text


@pytest.mark.parametrize("make", [Path.touch, make_dangling, os.mkfifo])
def test_a_fan_that_is_no_directory_does_not_keep_from_computing(
    cache: Cache, directory: Path, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    make(entry_path(directory, "a").parent)
    assert cache.get("a", lambda: 1) == 1
    assert cache.get("a", lambda: 2) == 2
    with cache.open("a", lambda file: file.write(b"large")) as file:
        assert file.read() == b"large"
    assert len(caplog.records) <= 2
    cache.trim()


@pytest.mark.parametrize("make", [make_directory, make_dangling, os.mkfifo])
def test_a_tally_that_is_no_file_does_not_keep_from_computing(
    directory: Path, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(directory, version="1", max_bytes=10_000)
    (version,) = (directory / "entries").iterdir()
    make(version / "tally")
    for value in range(3):
        assert cache.get("a", lambda value=value: value) == value  # type: ignore[misc]
    assert len(caplog.records) == 1
    assert [name for name in files(directory) if not name.startswith("tally/")] == []
    with pytest.raises(CacheError, match="cannot trim"):
        cache.trim()


def test_an_entry_of_another_user_that_cannot_be_read_is_replaced(cache: Cache, directory: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    cache.get("a", lambda: "root's")
    entry_path(directory, "a").chmod(0o600)
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir():
            path.chmod(0o777)
    for parent in takewhile(lambda one: not one.stat().st_mode & stat.S_ISVTX, directory.parents):  # up to /tmp
        parent.chmod(0o755)

    def as_another() -> Any:
        os.setresuid(1000, 1000, 1000)
        other = Cache(directory, version="1")
        return other.peek("a"), other.get("a", lambda: "another's"), other.get("a", refuse)

    assert run_forked(as_another) == (None, "another's", "another's")
    assert cache.get("a", refuse) == "another's"


# A full disk.


def failing(call: str, code: int) -> Callable[..., Any]:
    real = getattr(os, call)

    def fail(*args: Any, **options: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return real(*args, **options)
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("max_bytes", [None, 10_000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["write", "rename", "open", "mkdir", "pwrite", "ftruncate"])
def test_a_value_that_cannot_be_stored_is_returned_all_the_same(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    code: int,
    max_bytes: int | None,
) -> None:
    cache = Cache(directory, version="1", max_bytes=max_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(call, code))
        for value in range(3):
            got = cache.get("a", lambda value=value: value)  # type: ignore[misc]
            if call == "ftruncate" or (call == "pwrite" and max_bytes is None):  # not called
                assert got == 0
            else:
                assert got == value
                assert len(caplog.records) <= 2
                assert errno.errorcode[code] in caplog.text
    assert [name for name in files(directory) if len(Path(name).name) != 64] == []
    assert cache.get("b", lambda: 1) == 1
    assert cache.get("b", refuse) == 1


def test_who_waits_while_the_disk_is_full_computes_himself(directory: Path) -> None:
    if not has_permission_to_mount():
        pytest.skip("needs permission to mount")
    directory.mkdir()

    def work() -> list[Any]:
        leave_mount_namespace()
        run = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(directory)]
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=LIMIT)
        subprocess.run(run, check=True, timeout=LIMIT)
        cache = Cache(directory, version="1", max_bytes=10**9)
        answers: list[Any] = [cache.get("a", lambda: "x" * 100_000) == "x" * 100_000]
        with getter(cache, "a") as first, getter(cache, "a") as second:
            one, other = (first, second) if first.connection.poll(LIMIT / 10) else (second, first)
            answers.append(one.receive())
            wait_until_waiting(other)
            one.send("y" * 100_000)
            answers.append(one.receive() == ("got", "y" * 100_000))
            answers.append(other.receive())
            other.send("small")
            answers.append(other.receive())
        answers.append(cache.get("a", refuse))
        try:
            cache.open("b", lambda file: file.write(LARGE))
        except OSError as error:
            answers.append(error.errno)
        with cache.open("b", lambda file: file.write(b"small")) as file:
            answers.append(file.read())
        answers.append(len(files(directory)))
        return answers

    assert run_forked(work) == [
        True,
        "computing",
        True,
        "computing",
        ("got", "small"),
        "small",
        errno.ENOSPC,
        b"small",
        2,
    ]


def test_a_cache_on_a_full_disk_is_trimmed_though_its_tally_is_missing(directory: Path) -> None:
    if not has_permission_to_mount():
        pytest.skip("needs permission to mount")
    directory.mkdir()

    def work() -> tuple[int | None, int, list[int]]:
        leave_mount_namespace()
        run = ["mount", "-t", "tmpfs", "-o", "nr_inodes=60", "none", str(directory)]
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=LIMIT)
        subprocess.run(run, check=True, timeout=LIMIT)
        cache = Cache(directory, version="1", max_bytes=10**6)
        for number in range(5):
            cache.get(str(number), lambda: "x" * 1000)
        (tally,) = directory.glob("entries/*/tally")
        tally.unlink()
        error = None
        try:
            for number in range(100):
                (directory / f"other-{number}").touch()
        except OSError as full:
            error = full.errno
        smaller = Cache(directory, version="1", max_bytes=3000)
        return error, smaller.trim().evicted, [len(files(directory)), tally.stat().st_size > 0]

    assert run_forked(work) == (errno.ENOSPC, 3, [2, True])


def test_a_file_that_grows_beyond_its_limit_is_no_entry(cache: Cache, directory: Path) -> None:
    def work() -> tuple[Any, list[str]]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return cache.get("a", lambda: "x" * 2000), files(directory)

    assert run_forked(work) == ("x" * 2000, [])


def test_no_descriptor_stays_open(directory: Path) -> None:
    def open_descriptors() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{name}"))
        return [path for path in found if path.startswith(str(directory)) and not path.endswith("limits.lock")]

    cache = Cache(directory, version="1", max_bytes=10_000)
    cache.get("a", lambda: 1)
    cache.get("a", refuse)
    cache.open("a", lambda file: file.write(b"1")).close()
    cache.open("a", refuse).close()
    entry_path(directory, "a").write_text("damaged")
    assert cache.get("a", lambda: 2) == 2
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(_: Any = None, error: type[BaseException] = error) -> Any:
            raise error

        with pytest.raises(error):
            cache.get("b", fail)
        with pytest.raises(error):
            cache.open("b", fail)
    cache.get("big", lambda: "x" * 20_000)
    cache.trim()
    cache.delete("a")
    assert open_descriptors() == []
