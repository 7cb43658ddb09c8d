"""A fenced lock is the lock that it was, with a token that only ever grows and a holder that can be asked for."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.processes import LIMIT, Child, descriptors, is_free, run_forked, wait_blocked

from sharedvol import FileHolder, FileLock, LockError, LockTimeout, NotLockedError, container_id, worker_token
from sharedvol.locks.file import fencing, linux
from sharedvol.locks.file.holder_file import SIZE, read_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def take(path: Path) -> int:
    """The next token, taken by another process."""

    def work() -> int:
        with FileLock(path, fenced=True, timeout=LIMIT) as lock:
            return lock.token

    return int(run_forked(work))


def beside(path: Path) -> tuple[int, int]:
    """The open descriptors of token and holder file."""
    return descriptors(f"{path}.token"), descriptors(f"{path}.holder")


# Tokens


def test_each_hold_has_a_greater_token(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    tokens = []
    for _ in range(5):
        with lock:
            tokens.append(lock.token)
            with lock:
                assert lock.token == tokens[-1], "to hold it again is the same hold"
        tokens.append(take(path))
    assert tokens == list(range(tokens[0], tokens[0] + 10))


def test_the_first_token_is_the_time_in_microseconds(path: Path) -> None:
    before = time.time_ns() // 1000
    with FileLock(path, fenced=True) as lock:
        assert before <= lock.token <= time.time_ns() // 1000
        assert lock.token < 2**53


def test_only_the_holder_of_a_fenced_lock_has_a_token(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    with pytest.raises(NotLockedError):
        lock.token  # noqa: B018
    with lock:
        assert lock.token > 0
    with pytest.raises(NotLockedError):
        lock.token  # noqa: B018
    with FileLock(path) as plain, pytest.raises(LockError, match="fenced=True"):
        plain.token  # noqa: B018


def test_a_shared_lock_cannot_be_fenced(path: Path) -> None:
    with pytest.raises(ValueError, match="fenced and shared"):
        FileLock(path, fenced=True, shared=True)


def test_a_plain_lock_puts_nothing_beside_it(path: Path) -> None:
    with FileLock(path, purpose="nothing"):
        pass
    assert os.listdir(path.parent) == ["index.lock"]


def test_tokens_are_in_the_order_of_the_critical_sections(path: Path, tmp_path: Path) -> None:
    """8 processes, some with threads, some that make the object anew, one that is killed over and over."""
    log = tmp_path / "log"
    log.touch()

    def note(lock: FileLock) -> None:
        with lock, log.open("a") as file:
            file.write(f"{lock.token}\n")

    def work(number: int) -> Callable[[Connection], None]:
        def many(_: Connection) -> None:
            lock = FileLock(path, fenced=True, timeout=LIMIT)

            def run() -> None:
                for _ in range(60):
                    note(FileLock(path, fenced=True) if number % 2 else lock)

            threads = [threading.Thread(target=run) for _ in range(1 + number % 3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return many

    def die(connection: Connection) -> None:
        with FileLock(path, fenced=True) as lock, log.open("a") as file:
            file.write(f"{lock.token}\n")
            file.flush()
            connection.send("inside")
            signal.pause()

    children = [Child(work(number)) for number in range(8)]
    for _ in range(5):
        with Child(die) as child:
            child.receive()
            child.kill()
    for child in children:
        with child:
            child.wait()
    tokens = [int(line) for line in log.read_text().split()]
    assert len(tokens) == 60 * sum(1 + number % 3 for number in range(8)) + 5
    assert tokens == sorted(set(tokens))


# The lock that it was


def test_threads_that_share_it_have_tokens_of_their_own(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    tokens = []

    def run() -> None:
        for _ in range(50):
            with lock:
                tokens.append(lock.token)
                os.sched_yield()
                assert tokens[-1] == lock.token

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert tokens == list(range(tokens[0], tokens[0] + 200))
    assert is_free(path)


def test_tasks_have_tokens_of_their_own(path: Path) -> None:
    lock = FileLock(path, fenced=True, timeout=LIMIT)
    tokens = []

    async def one() -> None:
        async with lock:
            tokens.append(lock.token)
            await asyncio.sleep(0)
            assert tokens[-1] == lock.token
        async with await lock.acquire_async():
            tokens.append(lock.token)

    async def all_() -> None:
        await asyncio.gather(*(one() for _ in range(10)))

    asyncio.run(all_())
    assert sorted(tokens) == list(range(tokens[0], tokens[0] + 20))


def test_the_files_beside_it_stay_open_between_uses_and_close_with_it(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    for _ in range(3):
        with lock:
            assert (descriptors(path), beside(path)) == (1, (1, 1))
        assert (descriptors(path), beside(path)) == (1, (1, 1))
    del lock
    assert (descriptors(path), beside(path)) == (0, (0, 0))
    assert descriptors(path.parent) == 0


def test_a_forked_child_starts_without_any_of_it(path: Path) -> None:
    with FileLock(path, fenced=True, purpose="parent") as lock:
        token = lock.token

        def look() -> tuple[object, ...]:
            seen = lock.held, descriptors(path), beside(path), descriptors(path.parent)
            lock.release()  # of its parent's acquire: nothing
            with pytest.raises(LockTimeout):
                lock.acquire(timeout=0)
            return seen

        assert run_forked(look) == (False, 0, (0, 0), 0)
        assert lock.token == token
        lock.check()
        holder = lock.holder()
        assert holder is not None and holder.purpose == "parent"
    assert take(path) == token + 1


def test_a_childs_own_hold_says_that_it_is_the_child(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    with lock:
        pass

    def hold() -> tuple[int, FileHolder | None, str]:
        with lock:
            return os.getpid(), lock.holder(), worker_token()

    pid, holder, worker = run_forked(hold)
    assert (holder.pid, holder.worker) == (pid, worker)
    assert pid != os.getpid()


def test_a_pickled_lock_is_as_fenced_as_it_was(path: Path) -> None:
    lock = pickle.loads(pickle.dumps(FileLock(path, fenced=True, purpose="x" * 200)))
    with lock:
        assert lock.token > 0
        assert lock.holder().purpose == "x" * 200


def test_a_waiter_gets_it_with_the_next_token(path: Path) -> None:
    for timeout in (None, LIMIT):
        lock = FileLock(path, fenced=True)

        def wait(connection: Connection, timeout: float | None = timeout) -> None:
            with FileLock(path, fenced=True, timeout=timeout) as mine:
                connection.send(mine.token)

        lock.acquire()
        token = lock.token
        with Child(wait) as child:
            wait_blocked(path)
            lock.release()
            assert child.receive() == token + 1


# The holder


def test_the_holder_is_told_by_any_lock_of_the_path(path: Path) -> None:
    def hold(connection: Connection) -> None:
        with FileLock(path, fenced=True, purpose="nightly é \x1b[31m") as lock:
            connection.send((lock.token, os.getpid(), worker_token()))
            connection.recv()

    for asking in (FileLock(path), FileLock(path, fenced=True), FileLock(path, shared=True)):
        assert asking.holder() is None
        before = datetime.now(UTC)
        with Child(hold) as child:
            token, pid, worker = child.receive()
            holder = asking.holder()
            child.send("go")
        assert holder is not None and holder.since is not None
        assert before.timestamp() - 1 <= holder.since.timestamp() <= time.time()
        assert (holder.token, holder.pid, holder.worker) == (token, pid, worker)
        assert (holder.replica, holder.purpose) == (container_id(), "nightly é \x1b[31m")
        assert (holder.shared, holder.pids) == (False, (pid,))
        assert asking.holder() is None, "what stands in the file is not believed over the kernel"


def test_a_killed_holder_is_no_holder(path: Path) -> None:
    def hold(connection: Connection) -> None:
        held = FileLock(path, fenced=True).acquire()
        connection.send("held")
        signal.pause()
        del held

    with Child(hold) as child:
        child.receive()
        assert read_record(str(path)) is not None
        child.kill()
        assert FileLock(path).holder() is None
        assert read_record(str(path)) is None


def test_a_holder_that_says_nothing_of_itself_is_told_without_the_last_ones_words(path: Path) -> None:
    with FileLock(path, fenced=True, purpose="of the last one"):
        pass
    with FileLock(path) as lock:
        assert lock.holder() == FileHolder(pids=(os.getpid(),))
    with FileLock(path, shared=True) as lock:
        assert lock.holder() == FileHolder(pids=(os.getpid(),), shared=True)


def test_a_lock_file_that_is_not_there_has_no_holder(path: Path) -> None:
    assert FileLock(path).holder() is None
    assert not path.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 900, '{"sharedvol": 2}', '{"sharedvol":1,"pid":true,"since":1e999}', "x" * 2000]
)
def test_words_that_cannot_be_believed_are_left_out(path: Path, content: str) -> None:
    with FileLock(path, fenced=True, purpose="p") as lock:
        Path(f"{path}.holder").write_text(content)
        assert lock.holder() == FileHolder(pids=(os.getpid(),))


def test_each_word_is_believed_for_itself(path: Path) -> None:
    with FileLock(path, fenced=True) as lock:
        said = {"sharedvol": 1, "token": "5", "since": "now", "replica": ["x"], "pid": -1, "purpose": "y" * 201}
        Path(f"{path}.holder").write_text(json.dumps({**said, "worker": "w", "more": 1}))
        assert lock.holder() == FileHolder(pids=(os.getpid(),), worker="w")


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "read-only"])
def test_a_holder_file_that_cannot_be_written_fails_nothing(path: Path, tmp_path: Path, kind: str) -> None:
    file = Path(f"{path}.holder")
    target = tmp_path / "target"
    target.write_text("precious")
    if kind == "link":
        file.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    else:
        file.touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linux, "try_first", lambda _: exec("raise OSError(30, 'Read-only file system')"))
            with FileLock(path, fenced=True) as lock:
                assert lock.holder() == FileHolder(pids=(os.getpid(),))
        return
    lock = FileLock(path, fenced=True, purpose="p")
    for _ in range(3):
        with lock:
            assert lock.token > 0
            assert lock.holder() == FileHolder(pids=(os.getpid(),))
    assert target.read_text() == "precious"


def test_a_holder_file_that_was_deleted_or_grew_is_made_good(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "TICK", -1)  # else that is noticed within 0.1 s
    lock = FileLock(path, fenced=True, purpose="p")
    file = Path(f"{path}.holder")

    def told() -> str:
        with lock:
            holder = lock.holder()
            assert holder is not None
            return holder.purpose

    assert told() == "p"
    file.unlink()
    assert told() == "p"
    file.write_bytes(b"x" * 5000)
    assert told() == "p"
    assert file.stat().st_size == SIZE
    assert file.read_bytes().endswith(b" \n")
    file.rename(f"{file}.aside")
    assert told() == "p"


def test_whatever_the_purpose_the_record_has_its_size(path: Path) -> None:
    for purpose in ("", "x" * 200, "\x00" * 200, "\U0001f600" * 200, "\udcff" * 200, '"\\' * 100):
        with FileLock(path, fenced=True, purpose=purpose) as lock:
            data = Path(f"{path}.holder").read_bytes()
            assert len(data) == SIZE and data.endswith(b"\n")
            assert json.loads(data)["token"] == lock.token
            holder = lock.holder()
            assert holder is not None
            assert purpose.encode(errors="replace").decode().startswith(holder.purpose)
    with pytest.raises(ValueError, match="201 characters"):
        FileLock(path, fenced=True, purpose="x" * 201)


def test_without_a_name_for_the_container_the_rest_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sharedvol import IdentityError
    from sharedvol.locks.file import holder_file as record

    def fail() -> str:
        raise IdentityError("nothing names this container")

    monkeypatch.setattr(record, "container_id", fail)
    with FileLock(path, fenced=True) as lock:
        holder = lock.holder()
        assert holder is not None
        assert (holder.replica, holder.pid, holder.token) == (None, os.getpid(), lock.token)


# A time-out names the holder


@pytest.mark.parametrize("is_async", [False, True])
def test_a_timeout_names_the_holder_and_nothing_that_a_terminal_obeys(path: Path, is_async: bool) -> None:
    lock = FileLock(path, fenced=True, timeout=0.02)

    async def wait() -> None:
        await lock.acquire_async()

    def hold(connection: Connection) -> None:
        with FileLock(path, fenced=True, purpose="bad \x1b[31m\n\u202e"):
            connection.send(os.getpid())
            connection.recv()

    with Child(hold) as child:
        pid = child.receive()
        with pytest.raises(LockTimeout) as caught:
            asyncio.run(wait()) if is_async else lock.acquire()
        child.send("go")
    holder = caught.value.holder
    assert isinstance(holder, FileHolder)
    assert (holder.pid, holder.purpose) == (pid, "bad \x1b[31m\n\u202e")
    message = str(caught.value)
    assert message.isprintable()
    assert f"replica {container_id()}, process {pid}" in message
    assert r"bad \x1b[31m\n\u202e" in message
    assert pickle.loads(pickle.dumps(caught.value)).holder == holder


def test_a_timeout_without_a_wait_names_the_holder(path: Path) -> None:
    with FileLock(path, fenced=True) as lock:

        def attempt() -> object:
            with pytest.raises(LockTimeout) as caught:
                FileLock(path, fenced=True).acquire(timeout=0)
            return caught.value.holder

        holder = run_forked(attempt)
        assert isinstance(holder, FileHolder) and holder.token == lock.token


def test_a_timeout_under_a_silent_holder_is_as_it_was(path: Path) -> None:
    with FileLock(path):

        def attempt() -> str:
            with pytest.raises(LockTimeout) as caught:
                FileLock(path, fenced=True).acquire(timeout=0.01)
            return str(caught.value)

        assert "is held by another process" in run_forked(attempt)


def test_a_holder_is_json(path: Path) -> None:
    with FileLock(path, fenced=True, purpose="p") as lock:
        holder = lock.holder()
        assert holder is not None
        told = json.loads(json.dumps(holder.as_dict()))
        assert (told["purpose"], told["shared"], told["pids"]) == ("p", False, [os.getpid()])
