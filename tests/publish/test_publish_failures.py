"""When publishing fails, nothing is left behind: no name, no temporary, no descriptor."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import LIMIT, has_permission_to_mount, run_forked

from sharedvol import PublishError, publish


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


def nothing_left(target: Path) -> bool:
    """Whether the directory is empty and no descriptor is open in it."""
    here = str(target.parent)
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return not os.listdir(target.parent) and not any(link.startswith(here) for link in links)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, OSError])
@pytest.mark.parametrize("replace", [False, True])
def test_an_exception_in_the_block(target: Path, error: type[BaseException], replace: bool) -> None:
    with pytest.raises(error), publish(target, replace=replace) as file:
        file.write("half")
        raise error("in the block")
    assert nothing_left(target)


def test_an_exception_in_the_block_keeps_the_old_file(target: Path) -> None:
    target.write_text("old")
    with pytest.raises(RuntimeError), publish(target, replace=True) as file:
        file.write("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("call", "replace"), [("fsync", False), ("fsync", True), ("link", False), ("rename", True)])
def test_a_failing_system_call(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str, replace: bool, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(PublishError, match=errno.errorcode[code]) as caught, publish(target, replace=replace) as file:
        file.write("data")
        monkeypatch.setattr(os, call, fail)
    assert caught.value.errno == code
    assert caught.value.filename == str(target)
    assert nothing_left(target)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_named(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(PublishError, match=r"no hard links.*replace=True") as caught, publish(target) as file:
        file.write("data")
    assert caught.value.errno == code
    assert nothing_left(target)


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_that_cannot_be_synced_is_told_as_such(
    target: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = pytest.raises(PublishError, match="is published, but may not survive")
    with expected as caught, publish(target, replace=replace) as file:
        file.write("data")
    assert caught.value.errno == errno.EIO
    assert target.read_text() == "data"
    assert os.listdir(target.parent) == [target.name]


def test_an_interrupt_while_syncing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt), publish(target) as file:
        file.write("data")
    assert nothing_left(target)


@pytest.mark.parametrize("binary", [False, True])
def test_a_write_that_fails_when_the_file_is_closed_publishes_nothing(target: Path, binary: bool) -> None:
    def write() -> tuple[int | None, bool]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            with publish(target, "wb") if binary else publish(target) as file:
                written: Any = "x" * 1000
                file.write(written.encode() if binary else written)  # stays in the buffer
        except PublishError as error:
            return error.errno, nothing_left(target)
        return None, False

    assert run_forked(write) == (errno.EFBIG, True)
    assert os.listdir(target.parent) == []


def test_a_failure_after_a_cleaner_took_the_temporary_closes_once(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = os.open

    def open_once(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_EXCL:
            if opened:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            opened.append(real(path, flags, *args, **options))
            os.unlink(path, dir_fd=options["dir_fd"])  # a cleaner was faster than the lock
            return opened[0]
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_once)
    with pytest.raises(PublishError, match="ENOSPC"), publish(target):
        pytest.fail("the block ran")
    assert opened, "the temporary was not created as this test assumes"
    assert nothing_left(target)


def test_a_missing_directory_is_told_before_the_block(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="create the directory") as caught, publish(tmp_path / "no" / "x"):
        pytest.fail("the block ran")
    assert caught.value.errno == errno.ENOENT


def test_a_file_in_the_directorys_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PublishError) as caught, publish(tmp_path / "file" / "x"):
        pytest.fail("the block ran")
    assert caught.value.errno == errno.ENOTDIR


def test_a_block_that_is_never_left_gives_the_file_up_when_it_is_dropped(target: Path) -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    publication = publish(target)
    publication.__enter__().close()
    assert len(os.listdir(target.parent)) == 1
    del publication
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(target.parent) == []


def test_a_directory_at_the_name_is_not_replaced(target: Path) -> None:
    target.mkdir()
    with pytest.raises(PublishError) as caught, publish(target, replace=True):
        pass
    assert caught.value.errno == errno.EISDIR
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PublishError, match="write access") as caught, publish(tmp_path / "x"):
            pytest.fail("the block ran")
    finally:
        tmp_path.chmod(0o755)
    assert caught.value.errno == errno.EACCES


IN_A_MOUNT = """
import sys, sharedvol
try:
    with sharedvol.publish(sys.argv[1] + "/result", "wb") as file:
        for _ in range(64):
            file.write(b"x" * 4096)
except OSError as error:
    print(error)
"""


def in_mount_namespace(mount: str, directory: Path) -> list[str]:
    """What `IN_A_MOUNT` prints behind ``mount`` (a shell command of ``$1``), and what it leaves."""
    script = f'{mount} && "$2" -c "$3" "$1" && ls -A "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(directory), sys.executable, IN_A_MOUNT],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(not has_permission_to_mount(), reason="needs root, to mount")
def test_a_read_only_mount(tmp_path: Path) -> None:
    (message,) = in_mount_namespace('mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"', tmp_path)
    assert "EROFS" in message
    assert "mount the volume read-write" in message


@pytest.mark.skipif(not has_permission_to_mount(), reason="needs root, to mount")
def test_a_full_disk(tmp_path: Path) -> None:
    (message,) = in_mount_namespace('mount -t tmpfs -o size=64k none "$1"', tmp_path)
    assert "No space left" in message
