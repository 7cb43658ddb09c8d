"""The fencing file: what is refused in its place, who can use it, and what a full or broken disk does to a token."""

from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import LIMIT, descriptors, has_permission_to_mount, is_free, run_forked

from sharedvol import FileLock, LockFileError
from sharedvol.locks.file import token_file as fence

BOOT = fence.boot_id()
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
START = 1_700_000_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def token_file(path: Path) -> Path:
    return Path(f"{path}.token")


def line(token: int, reserved: int, boot: str = BOOT) -> bytes:
    return b"sharedvol-token 1 %019d %019d %-36s\n" % (token, reserved, boot.encode())


def put(path: Path, content: bytes) -> Path:
    file = token_file(path)
    file.write_bytes(content)
    file.chmod(0o666)
    return file


def take(path: Path) -> int:
    """The next token, taken through a new object, as another process would."""
    with FileLock(path, fenced=True, timeout=LIMIT) as lock:
        return lock.token


def refused(path: Path, words: str) -> LockFileError:
    """The error of a token that cannot be had; the lock is given back, and nothing piles up."""
    gc.collect()  # a lock that only an earlier error's traceback has
    lock = FileLock(path, fenced=True)
    for _ in range(3):
        with pytest.raises(LockFileError, match=words) as caught:
            lock.acquire()
        assert str(token_file(path)) in str(caught.value)
        assert not lock.held
        assert is_free(path)
        assert max(descriptors(path), descriptors(token_file(path))) == 1
    return caught.value


# What stands in the file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(line(START, START + 10), START + 1, id="below the reservation"),
        pytest.param(line(START + 10, START + 10), START + 11, id="at the reservation"),
        pytest.param(line(START + 20, START + 10), START + 21, id="above the reservation"),
        pytest.param(line(START, START + 10, OTHER_BOOT), START + 11, id="another boot"),
        pytest.param(line(START + 20, START + 10, OTHER_BOOT), START + 21, id="another boot, above"),
        pytest.param(line(START, START + 10, "-"), START + 11, id="no boot"),
        pytest.param(line(0, 0, "-"), 1, id="the least"),
    ],
)
def test_the_next_token_is_above_what_may_have_been_given(path: Path, content: bytes, expected: int) -> None:
    file = put(path, content)
    assert [take(path), take(path)] == [expected, expected + 1]
    token, reserved, boot = file.read_text().split()[2:]
    assert (int(token), boot) == (expected + 1, BOOT)
    assert int(reserved) >= int(token)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name)
        for name, content in {
            "empty": b"",
            "short": line(START, START)[:-1],
            "long": line(START, START) + b"\n",
            "another version": line(START, START).replace(b"token 1", b"token 2"),
            "signed": line(START, START).replace(b"0001", b"-001", 1),
            "no boot": line(START, START, ""),
            "no number": line(START, START).replace(b"0001", b"000x", 1),
            "other digits": line(START, START)[:18] + "٣".encode() * 9 + b"1" + line(START, START)[37:],
            "zeros": bytes(fence.SIZE),
            "beyond a double": line(fence.LARGEST, START),
            "reserved beyond a double": line(START, fence.LARGEST),
        }.items()
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    file = put(path, content)
    error = refused(path, "is damaged.*remove it while nobody holds the lock")
    assert file.read_bytes() == content
    assert error.filename == str(file)
    file.unlink()
    assert take(path) > START


def test_a_damage_between_two_uses_of_one_object_is_refused(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    with lock:
        token = lock.token
    content = token_file(path).read_bytes()
    put(path, b"x")
    with pytest.raises(LockFileError, match="damaged"):
        lock.acquire()
    put(path, content)
    with lock:
        assert lock.token == token + 1


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(line(START, START))
    token_file(path).symlink_to(target)
    assert refused(path, "ELOOP").errno == errno.ELOOP
    assert target.read_bytes() == line(START, START)
    target.unlink()
    assert refused(path, "ELOOP").errno == errno.ELOOP
    assert not target.exists()


def test_a_directory_is_refused(path: Path) -> None:
    token_file(path).mkdir()
    assert refused(path, "EISDIR").errno == errno.EISDIR


def test_a_fifo_is_refused_without_a_wait(path: Path) -> None:
    os.mkfifo(token_file(path))
    assert refused(path, "not a regular file").errno == errno.EINVAL


# A file that goes, and a clock that is set back


def test_a_deleted_file_does_not_take_tokens_back(path: Path) -> None:
    tokens = []
    for _ in range(3):
        tokens += [take(path), take(path)]
        token_file(path).unlink()
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("how", ["deleted", "moved aside", "put back"])
def test_within_a_process_tokens_grow_though_the_clock_is_set_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    lock = FileLock(path, fenced=True)
    with lock:
        before = token_file(path).read_bytes()
    for _ in range(5):
        with lock:
            token = lock.token
    monkeypatch.setattr(fence.time, "time_ns", lambda: 5_000_000)
    if how == "put back":
        put(path, before)
    elif how == "deleted":
        token_file(path).unlink()
    else:
        token_file(path).rename(f"{path}.aside")
    with lock:
        assert lock.token > token
        token = lock.token
    assert take(path) > token


def test_a_clock_that_is_set_back_takes_no_token_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [take(path)]
    monkeypatch.setattr(fence.time, "time_ns", lambda: 0)
    tokens += [take(path), take(path)]
    assert tokens == [tokens[0], tokens[0] + 1, tokens[0] + 2]


def test_without_a_boot_id_every_token_is_reserved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "boot_id", lambda: "-")
    tokens = [take(path), take(path), take(path)]
    assert tokens == sorted(set(tokens))
    token, reserved, boot = token_file(path).read_text().split()[2:]
    assert (int(token), boot) == (tokens[-1], "-")
    assert int(reserved) > int(token)


# Who may use it


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o600])
def test_the_mode_is_that_of_the_lock_file_whatever_the_umask(path: Path, mode: int) -> None:
    def lock() -> None:
        os.umask(0o077)
        with FileLock(path, fenced=True, mode=mode):
            pass

    run_forked(lock)
    modes = {name: stat.S_IMODE((path.parent / name).stat().st_mode) for name in os.listdir(path.parent)}
    assert modes == {"index.lock": mode, "index.lock.token": mode, "index.lock.holder": mode}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become two other users")
@pytest.mark.parametrize("sticky", [0, stat.S_ISVTX])
def test_users_share_what_either_created(path: Path, sticky: int) -> None:
    path.parent.chmod(0o777 | sticky)

    def take_as(user: int) -> tuple[int, str]:
        directory = os.open(path.parent, os.O_RDONLY)
        os.umask(0o077)
        os.fchdir(directory)  # the directories above may be closed to that user
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        with FileLock(path.name, fenced=True, purpose=str(user)) as lock:
            holder = lock.holder()
            assert holder is not None
            return lock.token, holder.purpose

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "abspath", lambda name: f"./{os.fspath(name)}")
        found = [run_forked(lambda user=user: take_as(user)) for user in (12345, 23456, 12345)]
    assert token_file(path).stat().st_uid == 12345
    assert [token - found[0][0] for token, _ in found] == [0, 1, 2]
    assert [purpose for _, purpose in found] == ["12345", "23456", "12345"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_file_of_another_user_without_permission_is_named(path: Path) -> None:
    take(path)
    token_file(path).chmod(0o600)
    path.parent.chmod(0o777)

    def attempt() -> str:
        directory = os.open(path.parent, os.O_RDONLY)
        os.fchdir(directory)
        os.setresuid(12345, 12345, 12345)
        with pytest.raises(LockFileError, match="EACCES") as caught:
            FileLock(path.name, fenced=True).acquire()
        FileLock(path.name, timeout=0).acquire()  # it was given back
        return str(caught.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "abspath", lambda name: f"./{os.fspath(name)}")
        assert "give user 12345 read and write access" in run_forked(attempt)


@pytest.mark.skipif(not has_permission_to_mount(), reason="needs root, to mount")
@pytest.mark.parametrize("state", ["full", "read-only", "full with the file there"])
def test_a_disk_that_takes_nothing_more(path: Path, tmp_path: Path, state: str) -> None:
    """Full when the file is to be made: refused, nothing left behind. Later nothing more is needed from the disk."""
    code = (
        "import os, sys, sharedvol\n"
        "os.chdir(sys.argv[1])\n"
        "def take():\n"
        "    with sharedvol.FileLock('a.lock', fenced=True) as lock: return lock.token\n"
        "open('a.lock', 'w').close()\n"
        "if 'there' in sys.argv[2]: print(take())\n"
        "if 'full' in sys.argv[2]:\n"
        "    with open('filler', 'wb', buffering=0) as file:\n"
        "        try:\n"
        "            while True: file.write(bytes(4096))\n"
        "        except OSError: pass\n"
        "else: assert os.system('mount -o remount,ro .') == 0\n"
        "for _ in range(2):\n"
        "    try: print(take())\n"
        "    except sharedvol.LockFileError as error: print(error)\n"
        "print(sorted(os.listdir()))\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(disk), sys.executable, code, state],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    *told, names = done.stdout.splitlines()
    if state == "full with the file there":
        first, *others = map(int, told)
        assert others == [first + 1, first + 2]
        return
    assert len(told) == 2
    if state == "full":
        assert all("ENOSPC" in one and "free some space" in one and ".token" in one for one in told)
        assert names == "['a.lock', 'filler']"
    else:
        assert all("EROFS" in one and "mount the volume read-write" in one for one in told)


# A disk that fails in the middle


def failing(call: str, error: int, on: Callable[[Any], bool] = lambda _: True) -> Callable[..., Any]:
    real = getattr(os, call)

    def fail(*arguments: Any) -> Any:
        if on(arguments):
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    return fail


@pytest.mark.parametrize("call", ["pread", "pwrite", "fdatasync", "fsync"])
def test_a_disk_that_fails_gives_no_token_and_takes_none_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    put(path, line(START, START + 10, OTHER_BOOT))
    lock = FileLock(path, fenced=True)
    monkeypatch.setattr(os, call, failing(call, errno.EIO))
    for _ in range(3):
        with pytest.raises(LockFileError, match="EIO"):
            lock.acquire()
        assert not lock.held
        assert is_free(path)
    monkeypatch.undo()
    with lock:
        token = lock.token
    assert token > START + 10
    assert take(path) == token + 1


def test_a_reservation_that_was_not_synced_covers_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next holder would believe it, and a power cut take its tokens back."""
    put(path, line(START, START))
    monkeypatch.setattr(os, "fdatasync", failing("fdatasync", errno.EIO))
    with pytest.raises(LockFileError, match="EIO"):
        FileLock(path, fenced=True).acquire()
    assert token_file(path).read_text().split()[4] == "-"
    monkeypatch.undo()
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    take(path)
    assert synced == [str(token_file(path))]


def test_a_token_needs_a_sync_only_where_the_reservation_is_used_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "RESERVED", 5)
    syncs = []
    monkeypatch.setattr(os, "fdatasync", lambda _: syncs.append(len(tokens)))
    tokens: list[int] = []
    lock = FileLock(path, fenced=True)
    for _ in range(13):
        with lock:
            tokens.append(lock.token)
    assert tokens == list(range(tokens[0], tokens[0] + 13))
    assert syncs == [0, 6, 12]


@pytest.mark.parametrize("written", [0, 20, 94])
def test_a_token_that_was_written_in_part_is_not_given(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    tokens = [take(path)]
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:written], at))
    refused(path, "ENOSPC")
    monkeypatch.undo()
    tokens.append(take(path))
    assert tokens[1] > tokens[0]
