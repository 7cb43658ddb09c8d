"""The lock file itself: its mode, what is refused in its place, and what happens when it is taken away."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import LIMIT, descriptors, has_permission_to_mount, run_forked

from sharedvol import FileLock, LockFileError, LockLostError, LockTimeout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> LockFileError:
    """The error of a lock that cannot be there."""
    with pytest.raises(LockFileError, match=r"cannot|not a regular") as caught:
        FileLock(path, timeout=0).acquire()
    assert str(path) in str(caught.value)
    assert caught.value.filename == str(path)
    assert isinstance(caught.value, OSError)
    return caught.value


def test_the_file_is_never_deleted(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        inode = path.stat().st_ino
    with lock:
        pass
    del lock
    assert path.stat().st_ino == inode
    assert path.read_bytes() == b""


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o600])
def test_the_mode_does_not_depend_on_the_umask(path: Path, mode: int) -> None:
    def lock() -> None:
        os.umask(0o077)
        with FileLock(path, mode=mode):
            pass

    run_forked(lock)
    assert mode_of(path) == mode


def test_everybody_may_lock_unless_told_otherwise(path: Path) -> None:
    with FileLock(path):
        assert mode_of(path) == 0o666


def test_an_empty_file_of_ours_that_shuts_others_out_is_opened_up(path: Path) -> None:
    path.touch(mode=0o600)
    with FileLock(path):
        assert mode_of(path) == 0o666


def test_a_file_with_content_keeps_its_mode(path: Path) -> None:
    path.write_text("not a lock file")
    path.chmod(0o600)
    with FileLock(path):
        assert mode_of(path) == 0o600
    assert path.read_text() == "not a lock file"


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o400 | 0o200 | 0o004])
def test_a_mode_that_somebody_chose_is_kept(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    with FileLock(path):
        assert mode_of(path) == mode


def test_a_mode_that_cannot_be_set_is_an_error_and_leaks_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", fail)
    assert refused(path).errno == errno.EPERM
    assert descriptors(path) == 0


def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    path.symlink_to(target)
    assert refused(path).errno == errno.ELOOP
    assert not target.exists()
    target.touch()
    assert refused(path).errno == errno.ELOOP


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    assert refused(path).errno == errno.EISDIR


def test_a_fifo_is_refused_without_a_wait(path: Path) -> None:
    os.mkfifo(path)
    assert refused(path).errno == errno.EINVAL
    assert descriptors(path) == 0


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "no" / "index.lock")
    assert error.errno == errno.ENOENT
    assert "create its directory" in str(error)


def test_a_file_in_the_directorys_place_is_named(path: Path) -> None:
    path.touch()
    assert refused(path / "index.lock").errno == errno.ENOTDIR


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_a_file_without_permission_is_named(path: Path) -> None:
    path.write_text("x")
    path.chmod(0o400)
    assert refused(path).errno == errno.EACCES


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become two other users")
def test_users_share_a_lock_that_either_created(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "index.lock"

    def lock_as(user: int) -> str:
        os.chdir(tmp_path)  # the directories above may be closed to that user
        os.umask(0o077)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        try:
            with FileLock("index.lock", timeout=0):
                return "locked"
        except LockTimeout:
            return "held"

    with FileLock(tmp_path / "other.lock"):
        pass  # loads what the other users may be unable to read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "abspath", lambda name: os.fspath(name))
        assert run_forked(lambda: lock_as(12345)) == "locked"
        assert path.stat().st_uid == 12345
        assert run_forked(lambda: lock_as(23456)) == "locked"
        with FileLock(path):
            assert run_forked(lambda: lock_as(23456)) == "held"


@pytest.mark.skipif(not has_permission_to_mount(), reason="needs root, to mount")
def test_a_read_only_mount_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.lock").touch()
    code = (
        "import sys, sharedvol\n"
        "try: sharedvol.FileLock(sys.argv[1] + '/index.lock').acquire()\n"
        "except sharedvol.LockFileError as error: print(error)"
    )
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert "EROFS" in done.stdout
    assert "mount the volume read-write" in done.stdout


@pytest.mark.parametrize("again", [False, True])
def test_a_file_taken_away_between_uses_is_noticed(path: Path, again: bool) -> None:
    lock = FileLock(path, timeout=0)
    with lock:
        pass
    path.unlink()
    if again:
        path.touch()
    with lock:
        assert os.fstat(lock.fileno()).st_ino == path.stat().st_ino
        assert run_forked(lambda: takes(path)) is False
    assert run_forked(lambda: takes(path)) is True
    assert descriptors(path) == 1


def takes(path: Path) -> bool:
    try:
        FileLock(path, timeout=0).acquire()
    except LockTimeout:
        return False
    return True


def test_a_file_replaced_just_before_the_lock_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat
    inodes: list[int] = []

    def fstat(fd: int) -> os.stat_result:
        info = real(fd)
        if not inodes and path.exists() and info.st_ino == path.stat().st_ino:
            inodes.append(info.st_ino)
            path.rename(path.with_suffix(".old"))  # keeps its inode from being used again
            path.touch()
        return info

    lock = FileLock(path, timeout=0)
    monkeypatch.setattr(os, "fstat", fstat)
    with lock:
        assert inodes, "the file was not replaced as this test assumes"
        assert real(lock.fileno()).st_ino == path.stat().st_ino != inodes[0]


def test_a_descriptor_closed_by_other_code_is_an_error_only_while_it_holds(path: Path) -> None:
    lock = FileLock(path, timeout=0)
    with pytest.raises(LockLostError, match="closed by other code"), lock:
        os.close(lock.fileno())
    assert not lock.held
    with lock:
        fd = lock.fileno()
        assert run_forked(lambda: takes(path)) is False
    os.close(fd)
    with lock:
        assert run_forked(lambda: takes(path)) is False


def test_a_change_of_directory_does_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    lock = FileLock("index.lock")
    monkeypatch.chdir("other")
    assert lock.path == tmp_path / "index.lock"
    with lock:
        assert os.listdir() == []
        assert (tmp_path / "index.lock").exists()
