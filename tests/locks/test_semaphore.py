"""At most n are inside, in the order in which they came, whoever dies, waits or gives up."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.processes import LIMIT, Child, descriptors, is_free, run_forked, wait_blocked, wait_until

from sharedvol import LockDeadlockError, LockLostError, LockTimeout, NotLockedError, Semaphore, container_id
from sharedvol.locks.file import waiter

SHORT = 0.02
"""Seconds of a wait that is meant to end without a permit."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    wait_until(lambda: waiter.waiting() == 0, "the waiters of other tests to end")
    return tmp_path / "render"


def queue(path: Path) -> Path:
    return Path(f"{path}.queue.lock")


def permit(path: Path, number: int) -> Path:
    return Path(f"{path}.{number}.lock")


def free(path: Path, n: int) -> int:
    """How many permits another process can have now."""

    def count() -> int:
        semaphore, taken = Semaphore(path, n), 0
        try:
            while True:
                semaphore.acquire(timeout=0)
                taken += 1
        except LockTimeout:
            return taken

    return int(run_forked(count))


def holder(path: Path, n: int, *, timeout: float | None = None, purpose: str = "") -> Child:
    """A child that takes a permit, tells its number, and gives it back when told."""

    def work(connection: Connection) -> None:
        with Semaphore(path, n, timeout=timeout, purpose=purpose) as semaphore:
            connection.send(semaphore.permit)
            connection.recv()

    return Child(work)


def count_inside(path: Path, n: int, rounds: int, lines: Path, together: int = 1) -> None:
    """Say when one enters and leaves, by bytes that are appended; nobody leaves before so many are inside."""
    fd = os.open(lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    semaphore = Semaphore(path, n)
    for _ in range(rounds):
        with semaphore:
            os.write(fd, b"+")
            wait_until(lambda: os.fstat(fd).st_size >= together, f"{together} to be inside")
            os.sched_yield()
            os.write(fd, b"-")
    os.close(fd)


def most_inside(lines: Path) -> tuple[int, int]:
    """The most that were inside at once, and how often one was."""
    inside = most = 0
    text = lines.read_bytes()
    for step in text:
        inside += 1 if step == ord("+") else -1
        most = max(most, inside)
    assert inside == 0
    return most, text.count(b"+")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_never_more_than_n_processes_are_inside(path: Path, n: int, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    children = [Child(lambda _: count_inside(path, n, 60, lines, together=n)) for _ in range(6)]
    for child in children:
        with child:
            child.wait()
    assert most_inside(lines) == (n, 360)


def test_never_more_than_n_threads_are_inside(path: Path) -> None:
    semaphore = Semaphore(path, 2)
    inside = most = 0
    mutex = threading.Lock()
    together = threading.Barrier(2)

    def enter() -> None:
        nonlocal inside, most
        for turn in range(30):
            with semaphore:
                with mutex:
                    inside += 1
                    most = max(most, inside)
                if turn == 0:
                    together.wait(LIMIT)  # passes only when two are inside
                with mutex:
                    inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert (inside, most) == (0, 2)
    wait_until(lambda: waiter.waiting() == 0, "the parked waiters to end")
    assert free(path, 2) == 2


def test_different_n_are_within_the_greater(path: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    children = [Child(lambda _, n=n: count_inside(path, n, 60, lines)) for n in (1, 1, 3, 3, 3)]
    for child in children:
        with child:
            child.wait()
    most, times = most_inside(lines)
    assert 1 <= most <= 3
    assert times == 300


def test_permits_are_numbered_from_0(path: Path) -> None:
    semaphore = Semaphore(path, 3)
    assert (semaphore.n, semaphore.path, semaphore.held) == (3, path, False)
    with semaphore:
        assert (semaphore.permit, semaphore.held) == (0, True)
        with semaphore:
            assert semaphore.permit == 1
            assert free(path, 3) == 1
        assert semaphore.permit == 0
    with pytest.raises(NotLockedError, match="render"):
        semaphore.permit  # noqa: B018
    with pytest.raises(NotLockedError, match="render"):
        semaphore.release()


def test_what_acquire_returns_releases_once(path: Path) -> None:
    semaphore = Semaphore(path, 1)
    with semaphore.acquire() as same:
        assert same is semaphore
        assert free(path, 1) == 0
    assert free(path, 1) == 1
    assert not semaphore.held


def test_another_thread_does_not_hold_it(path: Path) -> None:
    semaphore = Semaphore(path, 1)
    seen: list[object] = []

    def other() -> None:
        seen.append(semaphore.held)
        for action in (semaphore.release, lambda: semaphore.acquire(timeout=0), lambda: semaphore.acquire(SHORT)):
            try:
                action()
            except (NotLockedError, LockTimeout) as error:
                seen.append(type(error))

    with semaphore:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(LIMIT)
        assert semaphore.held
    assert seen == [False, NotLockedError, LockTimeout, LockTimeout]


def test_a_killed_holder_frees_its_permit(path: Path) -> None:
    with holder(path, 2) as first, holder(path, 2) as second:
        assert {first.receive(), second.receive()} == {0, 1}
        assert free(path, 2) == 0
        second.kill()
        assert free(path, 2) == 1
        first.kill()
        assert free(path, 2) == 2


@pytest.mark.parametrize("timeout", [None, LIMIT])
@pytest.mark.parametrize("freed", [0, 1, 2])
def test_whichever_permit_is_freed_the_waiter_gets_it(path: Path, freed: int, timeout: float | None) -> None:
    holders = [holder(path, 3) for _ in range(3)]
    numbers = {child.receive(): child for child in holders}
    assert set(numbers) == {0, 1, 2}
    with holder(path, 3, timeout=timeout) as waiting:
        for number in range(3):
            wait_blocked(permit(path, number))
        numbers[freed].send("go")
        assert waiting.receive() == freed
        for number in {0, 1, 2} - {freed}:
            assert not Semaphore(path, 3).held
            numbers[number].send("go")
        waiting.send("go")
    for child in holders:
        with child:
            child.wait()
    assert free(path, 3) == 3


def test_those_who_wait_get_it_in_the_order_of_coming(path: Path) -> None:
    order: list[int] = []
    children: list[Child] = []
    with Semaphore(path, 1):
        for number in range(5):
            children.append(holder(path, 1))
            if number == 0:
                wait_blocked(permit(path, 0))
            else:
                wait_blocked(queue(path), number)
    for number, child in enumerate(children):
        assert child.receive() == 0
        assert not any(later.connection.poll(0) for later in children[number + 1 :])
        order.append(number)
        child.send("go")
        with child:
            child.wait()
    assert order == [0, 1, 2, 3, 4]


def test_a_killed_waiter_at_the_front_makes_way(path: Path) -> None:
    with holder(path, 2) as first, holder(path, 2) as second:
        assert {first.receive(), second.receive()} == {0, 1}
        with holder(path, 2) as front:
            wait_blocked(permit(path, 0))
            with holder(path, 2) as next_:
                wait_blocked(queue(path))
                front.kill()
                wait_blocked(permit(path, 1))
                first.send("go")
                assert next_.receive() in (0, 1)
                next_.send("go")
        second.send("go")
    assert free(path, 2) == 2


@pytest.mark.parametrize("where", ["front", "queue"])
def test_a_wait_ends_with_its_timeout_and_leaves_nothing(path: Path, where: str) -> None:
    semaphore = Semaphore(path, 2, timeout=SHORT)
    with holder(path, 2) as first, holder(path, 2) as second:
        assert {first.receive(), second.receive()} == {0, 1}
        waiting = holder(path, 2) if where == "queue" else None
        if waiting:
            wait_blocked(permit(path, 1))
        for _ in range(3):
            with pytest.raises(LockTimeout) as caught:
                semaphore.acquire()
            assert (caught.value.lock_file, caught.value.waited) == (str(path), SHORT)
        with pytest.raises(LockTimeout):
            semaphore.acquire(timeout=0)
        assert waiter.waiting() <= 2
        assert not semaphore.held
        if waiting:
            waiting.kill()
            with waiting:
                pass
        first.send("go")
        first.wait()
        with semaphore.acquire(timeout=LIMIT):
            assert free(path, 2) == 0
        second.send("go")
    wait_until(lambda: waiter.waiting() == 0, "the parked waiters to end")
    assert free(path, 2) == 2


def test_without_waiting_a_free_permit_is_found_beside_the_queue(path: Path) -> None:
    """One who is just passing through the queue is no reason to say that there is no permit."""
    with Semaphore(path, 2) as semaphore:
        fd = os.open(queue(path), os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with semaphore.acquire(timeout=0):
            assert semaphore.permit == 1
        os.close(fd)


def test_an_interrupt_while_waiting_leaves_nothing(path: Path) -> None:
    def wait(connection: Connection) -> None:
        semaphore = Semaphore(path, 2)
        try:
            semaphore.acquire()
        except KeyboardInterrupt:
            connection.send(semaphore.held)
            connection.recv()
            connection.send(semaphore.acquire(timeout=LIMIT) is not None)

    with holder(path, 2) as first, holder(path, 2) as second:
        assert {first.receive(), second.receive()} == {0, 1}
        with Child(wait) as third:
            wait_blocked(permit(path, 1))
            os.kill(third.pid, signal.SIGINT)
            assert third.receive() is False
            first.send("go")
            second.send("go")
            first.wait()
            second.wait()
            assert free(path, 2) == 2
            third.send("go on")
            assert third.receive() is True


def test_waiting_for_oneself_is_refused(path: Path) -> None:
    semaphore = Semaphore(path, 2)
    with semaphore, Semaphore(path, 2):
        with pytest.raises(LockDeadlockError, match="all 2 permits"):
            semaphore.acquire()
        with pytest.raises(LockTimeout):
            semaphore.acquire(timeout=SHORT)
    wait_until(lambda: waiter.waiting() == 0, "the parked waiters to end")
    assert free(path, 2) == 2


@pytest.mark.usefixtures("any_fork")
def test_a_forked_child_starts_without(path: Path) -> None:
    semaphore = Semaphore(path, 2)

    def look() -> tuple[object, ...]:
        held, open_ = semaphore.held, [descriptors(permit(path, number)) for number in range(2)]
        semaphore.release()
        with pytest.raises(NotLockedError):
            semaphore.release()
        with semaphore.acquire(timeout=0):
            return held, open_, semaphore.permit

    with semaphore:
        assert run_forked(look) == (False, [0, 0], 1)
        assert semaphore.permit == 0
        assert free(path, 2) == 1


def test_tasks_and_threads_are_counted_alike(path: Path) -> None:
    semaphore = Semaphore(path, 2, timeout=LIMIT)
    inside = most = 0

    async def enter() -> None:
        nonlocal inside, most
        for _ in range(10):
            async with semaphore:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    async def all_() -> None:
        await asyncio.gather(*(enter() for _ in range(6)))
        async with await semaphore.acquire_async(), semaphore:
            with pytest.raises(LockTimeout):
                await semaphore.acquire_async(timeout=SHORT)
            with pytest.raises(LockDeadlockError):
                await semaphore.acquire_async(timeout=None)

    asyncio.run(all_())
    assert (inside, most) == (0, 2)
    wait_until(lambda: waiter.waiting() == 0, "the parked waiters to end")
    assert free(path, 2) == 2


def test_a_cancelled_wait_gives_up_its_place(path: Path) -> None:
    async def wait() -> None:
        task = asyncio.create_task(Semaphore(path, 1).acquire_async(timeout=None))
        await asyncio.to_thread(wait_blocked, permit(path, 0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with holder(path, 1) as child:
        child.receive()
        asyncio.run(wait())
        with holder(path, 1) as next_:
            wait_blocked(permit(path, 0), 2)  # beside the one that was parked
            child.send("go")
            assert next_.receive() == 0
            next_.send("go")
    wait_until(lambda: waiter.waiting() == 0, "the parked waiter to end")


def test_without_a_thread_a_permit_is_got_when_it_is_freed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name.startswith("sharedvol"):
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    semaphore = Semaphore(path, 1)
    with holder(path, 1) as child:
        child.receive()
        with pytest.raises(LockTimeout):
            semaphore.acquire(timeout=SHORT)
        child.send("go")
        with semaphore.acquire(timeout=LIMIT):
            assert free(path, 1) == 0


def test_the_holders_say_who_they_are(path: Path) -> None:
    semaphore = Semaphore(path, 3, purpose="asks")
    assert semaphore.holders() == []
    with holder(path, 3, purpose="first") as child, semaphore:
        child.receive()
        wait_until(lambda: len(semaphore.holders()) == 2, "both to hold")
        found = {one.pid: (one.replica, one.purpose, one.token) for one in semaphore.holders()}
        assert found == {
            child.pid: (container_id(), "first", None),
            os.getpid(): (container_id(), "asks", None),
        }
        child.kill()
        assert [one.pid for one in semaphore.holders()] == [os.getpid()]
    assert semaphore.holders() == []


@pytest.mark.parametrize("how", ["deleted", "moved"])
@pytest.mark.parametrize("end", ["with", "release"])
def test_a_permit_that_was_lost_is_told(path: Path, end: str, how: str) -> None:
    semaphore = Semaphore(path, 2)

    def lose() -> None:
        if how == "deleted":
            permit(path, 0).unlink()
        else:
            permit(path, 0).rename(f"{path}.aside")

    def use() -> None:
        if end == "with":
            with semaphore:
                lose()
        else:
            semaphore.acquire()
            lose()
            semaphore.release()

    with pytest.raises(LockLostError, match="deleted or replaced"):
        use()
    assert not semaphore.held
    assert free(path, 2) == 2


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_wait_for_a_permit_whose_file_is_deleted_goes_on_with_the_new_one(path: Path, timeout: float | None) -> None:
    first = Semaphore(path, 1)
    first.acquire()
    with holder(path, 1, timeout=timeout) as child:
        wait_blocked(permit(path, 0))
        permit(path, 0).unlink()  # the first holds this one, and the child waits for it
        with pytest.raises(LockLostError):
            first.release()
        assert child.receive() == 0
        assert not is_free(permit(path, 0))
        child.send("go")
    assert free(path, 1) == 1


def test_a_pickled_semaphore_is_the_same_files(path: Path) -> None:
    with Semaphore(path, 2, timeout=0, purpose="p") as semaphore:
        copy = pickle.loads(pickle.dumps(semaphore))
        assert (copy.path, copy.n, copy.held) == (path, 2, False)
        with copy:
            assert copy.permit == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda path: Semaphore(path, 0),
        lambda path: Semaphore(path, 1, timeout=-1),
        lambda path: Semaphore(path, 1, purpose="x" * 201),
    ],
)
def test_senseless_arguments_are_refused(path: Path, make: Callable[[Path], Semaphore]) -> None:
    with pytest.raises(ValueError, match=r"semaphore|timeout|purpose"):
        make(path)
    assert os.listdir(path.parent) == []


def test_a_dropped_semaphore_is_freed_at_once(path: Path) -> None:
    semaphore = Semaphore(path, 1)
    semaphore.acquire()
    assert "held here" in repr(semaphore)
    del semaphore
    assert free(path, 1) == 1
    assert descriptors(permit(path, 0)) == 0
