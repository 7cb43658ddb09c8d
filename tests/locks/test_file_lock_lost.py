"""A lock that was lost under its holder is told, and freed in any case."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import LIMIT, descriptors, is_free, run_forked

from sharedvol import FileLock, LockLostError, LockTimeout, NotLockedError

Loss = Callable[[FileLock], object]


def delete(lock: FileLock) -> None:
    lock.path.unlink()


def replace(lock: FileLock) -> None:
    other = lock.path.with_suffix(".new")
    other.touch()
    other.rename(lock.path)


def move_aside(lock: FileLock) -> None:
    lock.path.rename(lock.path.with_suffix(".aside"))
    lock.path.touch()


def close(lock: FileLock) -> None:
    os.close(lock.fileno())


def close_and_reuse(lock: FileLock) -> None:
    """Other code closes the descriptor, and its number goes to a file of that code."""
    fd = os.open(lock.path.with_suffix(".theirs"), os.O_RDWR | os.O_CREAT)
    os.dup2(fd, lock.fileno())
    os.close(fd)


def another_token(lock: FileLock) -> None:
    file = Path(f"{lock.path}.token")
    file.write_text(file.read_text().replace(str(lock.token), str(lock.token + 1)))


def damaged_token(lock: FileLock) -> None:
    Path(f"{lock.path}.token").write_text("damaged")


WORDS = {
    delete: "deleted or replaced",
    replace: "deleted or replaced",
    move_aside: "deleted or replaced",
    close: "closed by other code",
    close_and_reuse: "closed by other code",
    another_token: "not .*, which was given to this holder",
    damaged_token: "damaged",
}
OF_THE_LOCK = [pytest.param(loss, id=loss.__name__) for loss in list(WORDS)[:5]]
ALL = [pytest.param(loss, id=loss.__name__) for loss in WORDS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def check(lock: FileLock) -> str:
    """What `check` says; nothing if it is content."""
    try:
        lock.check()
    except LockLostError as error:
        return str(error)
    return ""


def in_thread(work: Callable[[], object]) -> object:
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join(LIMIT)
    return result[0]


def let_go(lock: FileLock) -> None:
    """Release, whether it was lost or not."""
    with contextlib.suppress(LockLostError):
        lock.release()
    assert not lock.held


@pytest.mark.parametrize("loss", OF_THE_LOCK)
def test_check_tells_of_a_plain_lock(path: Path, loss: Loss) -> None:
    lock = FileLock(path)
    lock.acquire()
    lock.check()
    loss(lock)
    for said in (check(lock), in_thread(lambda: check(lock))):
        assert str(path) in str(said)
        assert re.search(WORDS[loss], str(said))  # type: ignore[index]
    let_go(lock)


@pytest.mark.parametrize("loss", ALL)
def test_check_and_release_tell_of_a_fenced_lock(path: Path, loss: Loss) -> None:
    lock = FileLock(path, fenced=True)
    lock.acquire()
    lock.check()
    loss(lock)
    with pytest.raises(LockLostError, match=WORDS[loss]):  # type: ignore[index]
        lock.check()
    told = loss is not move_aside  # where nobody took the lock meanwhile, that is left to check
    if told:
        with pytest.raises(LockLostError, match=WORDS[loss]):  # type: ignore[index]
            lock.release()
    else:
        lock.release()
    assert not lock.held
    with pytest.raises(NotLockedError):
        lock.check()
    if loss is damaged_token:
        Path(f"{path}.token").unlink()
    with lock:
        lock.check()
        assert not is_free(path)
    assert is_free(path)


def test_whoever_took_a_lock_that_was_moved_aside_is_told_at_the_release(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    lock.acquire()
    move_aside(lock)
    with FileLock(path, fenced=True) as other:
        with pytest.raises(LockLostError, match="deleted or replaced"):
            lock.release()
        other.check()
        assert not is_free(path)


def test_a_plain_release_tells_that_the_descriptor_was_closed(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire()
    close(lock)
    with pytest.raises(LockLostError, match="closed by other code"):
        lock.release()
    assert not lock.held
    with lock:
        assert not is_free(path)


def test_what_has_the_number_of_a_closed_descriptor_is_left_alone(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    lock.acquire()
    fd = lock.fileno()
    close_and_reuse(lock)
    with pytest.raises(LockLostError):
        lock.release()
    del lock
    assert os.readlink(f"/proc/self/fd/{fd}") == str(path.with_suffix(".theirs"))
    os.close(fd)


def test_an_heir_of_the_descriptor_that_moves_its_offset_loses_nobody_the_lock(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        os.lseek(lock.fileno(), 0, os.SEEK_SET)  # as a program that inherited it and reads does to all
    with lock:
        assert not is_free(path)
    assert is_free(path)
    assert descriptors(path) == 1


def test_a_closed_descriptor_whose_number_is_another_locks_is_told(path: Path, tmp_path: Path) -> None:
    lock, other = FileLock(path), FileLock(tmp_path / "other.lock")
    with other:
        lock.acquire()
        number = lock.fileno()
        os.dup2(other.fileno(), number)  # closes it, and its number is of the other lock's file
        with pytest.raises(LockLostError, match="closed by other code"):
            lock.release()
        assert not is_free(other.path)
        os.close(number)


def test_a_deleted_token_file_is_no_lost_lock(path: Path) -> None:
    """The lock file keeps others out, and nobody has taken a token since."""
    with FileLock(path, fenced=True) as lock:
        token = lock.token
        Path(f"{path}.token").unlink()
        lock.check()
    with lock:
        assert lock.token > token


@pytest.mark.parametrize("form", ["with", "acquire", "async"])
def test_the_end_of_a_clean_block_tells(path: Path, form: str) -> None:
    lock = FileLock(path, fenced=True)

    async def run() -> None:
        async with lock:
            delete(lock)

    def use() -> None:
        if form == "with":
            with lock:
                delete(lock)
        elif form == "acquire":
            with lock.acquire():
                delete(lock)
        else:
            asyncio.run(run())

    with pytest.raises(LockLostError, match="deleted"):
        use()
    assert not lock.held
    assert is_free(path)


def test_an_exception_that_is_on_its_way_is_not_hidden(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = FileLock(path, fenced=True)
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError), lock:
        delete(lock)
        raise ZeroDivisionError
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert not lock.held
    assert is_free(path)


def test_only_the_last_release_of_a_hold_tells(path: Path) -> None:
    lock = FileLock(path, fenced=True)
    lock.acquire()
    lock.acquire()
    delete(lock)
    lock.release()
    assert lock.held
    with pytest.raises(LockLostError):
        lock.release()
    assert (descriptors(path), lock.held) == (0, False)


def test_check_without_a_hold_is_an_error(path: Path) -> None:
    lock = FileLock(path)
    with pytest.raises(NotLockedError):
        lock.check()
    with lock:

        def child() -> bool:
            with pytest.raises(NotLockedError):
                lock.check()
            return True

        assert run_forked(child)
        lock.check()


def test_a_lost_lock_may_be_anothers_by_then(path: Path) -> None:
    """Which is why it is told."""
    lock = FileLock(path, fenced=True)
    lock.acquire()
    delete(lock)

    def other() -> int:
        with FileLock(path, fenced=True, timeout=0) as theirs:
            return theirs.token

    assert run_forked(other) == lock.token + 1
    with pytest.raises(LockLostError):
        lock.release()


@pytest.mark.parametrize("fenced", [False, True])
def test_a_check_beside_a_holder_that_comes_and_goes_never_cries_wolf(path: Path, fenced: bool) -> None:
    lock = FileLock(path, fenced=fenced)
    stop = threading.Event()
    said: list[str] = []
    checks = 0

    def look() -> None:
        nonlocal checks
        while not stop.is_set():
            try:
                lock.check()
                checks += 1
            except NotLockedError:
                pass
            except LockLostError as error:
                said.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        turns = 0
        while turns < 300 or (checks < 20 and turns < 100_000):
            turns += 1
            with lock:
                os.sched_yield()
            if turns % 50 == 0:
                with pytest.raises(LockTimeout), FileLock(path):
                    FileLock(path).acquire(timeout=0)
    finally:
        stop.set()
        thread.join(LIMIT)
    assert said == []
    assert checks >= 20
