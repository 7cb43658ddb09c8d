"""One computes, the rest wait and read: processes, threads and tasks; failures, kills, and every interleaving."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cached import computed, files, getter, lock_path, refuse, wait_until_waiting, waits_in_kernel
from support.processes import LIMIT, Child, run_forked, wait_blocked, wait_until

from sharedvol import CacheTimeout, FileLock, LockDeadlockError
from sharedvol.cache import Cache, lock_wait, single_flight
from sharedvol.cache.entries import Absent

KEY = "a"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Cache:
    return Cache(directory, version="1")


def locks(directory: Path) -> list[str]:
    return [name for name in files(directory) if name.endswith(".lock")]


def started(cache: Cache, count: int, **options: Any) -> tuple[Child, list[Child]]:
    """A child that computes, and some that wait for it."""
    first = getter(cache, KEY, **options)
    assert first.receive() == "computing"
    rest = [getter(cache, KEY, **options) for _ in range(count)]
    for child in rest:
        wait_until_waiting(child)
    return first, rest


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_of_many_processes_one_computes_and_all_have_it(cache: Cache, directory: Path, timeout: float | None) -> None:
    first, rest = started(cache, 31, timeout=timeout)
    with contextlib.ExitStack() as stack:
        for child in (first, *rest):
            stack.enter_context(child)
        first.send("value")
        assert [child.receive() for child in (first, *rest)] == [("got", "value")] * 32
    assert len(files(directory)) == 1  # the entry: no lock file stays


def test_processes_that_start_at_once_cause_one_computation(cache: Cache, directory: Path, tmp_path: Path) -> None:
    for number in range(10):
        counted, key = tmp_path / f"count{number}", f"key{number}"
        go, wait = os.pipe()[::-1]

        def work(_: Any, key: str = key, counted: Path = counted, wait: int = wait, go: int = go) -> None:
            os.close(go)
            os.read(wait, 1)
            assert cache.get(key, computed(counted, lambda: "value")) == "value"

        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(work)) for _ in range(12)]
            os.close(wait)
            os.close(go)
            for child in children:
                assert child.wait() == 0
        assert len(counted.read_text().splitlines()) == 1
    assert locks(directory) == []


def test_of_many_threads_one_computes(cache: Cache, directory: Path) -> None:
    calls: list[int] = []
    go = threading.Event()

    def compute() -> str:
        calls.append(1)
        wait_until(lambda: waiting_threads() >= 15, "15 threads in the kernel")
        return "value"

    def waiting_threads() -> int:
        path = lock_path(directory, KEY)
        inode = os.stat(path).st_ino
        return sum("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())

    def work() -> str:
        go.wait(LIMIT)
        return cache.get(KEY, compute)

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(work) for _ in range(16)]
        go.set()
        assert [future.result(LIMIT) for future in futures] == ["value"] * 16
    assert len(calls) == 1
    assert locks(directory) == []
    assert cache.statistics().computed == 1


async def test_of_many_tasks_one_computes_and_the_loop_goes_on(cache: Cache, directory: Path) -> None:
    calls: list[int] = []
    others = asyncio.Event()

    async def compute() -> str:
        calls.append(1)
        await asyncio.wait_for(others.wait(), LIMIT)  # set by a task of this very loop
        return "value"

    tasks = [asyncio.create_task(cache.get_async(KEY, compute)) for _ in range(16)]
    while not calls:
        await asyncio.sleep(0)
    others.set()
    assert await asyncio.gather(*tasks) == ["value"] * 16
    assert len(calls) == 1
    assert locks(directory) == []
    assert cache.get(KEY, refuse) == "value"


async def test_a_cancelled_computation_is_replaced(cache: Cache, directory: Path) -> None:
    computing_now = asyncio.Event()

    async def hang() -> str:
        computing_now.set()
        await asyncio.sleep(LIMIT)
        raise AssertionError("never")

    async def compute() -> str:
        return "value"

    first = asyncio.create_task(cache.get_async(KEY, hang))
    await computing_now.wait()
    second = asyncio.create_task(cache.get_async(KEY, compute))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, LIMIT) == "value"
    assert locks(directory) == []


async def test_a_cancelled_wait_leaves_the_computation_alone(cache: Cache) -> None:
    go = asyncio.Event()

    async def compute() -> str:
        await go.wait()
        return "value"

    async def never() -> str:
        raise AssertionError("computed")

    first = asyncio.create_task(cache.get_async(KEY, compute))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.get_async(KEY, never))
    for _ in range(10):
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    assert await asyncio.wait_for(first, LIMIT) == "value"


def test_tasks_and_processes_wait_for_each_other(cache: Cache) -> None:
    first, _ = started(cache, 0)

    async def never() -> str:
        raise AssertionError("computed")

    async def both() -> str:
        task = asyncio.create_task(cache.get_async(KEY, never))
        while not waits_in_kernel(os.getpid()):
            await asyncio.sleep(0.001)
        first.send("value")
        return await asyncio.wait_for(task, LIMIT)

    with first:
        assert asyncio.run(both()) == "value"
        assert first.receive() == ("got", "value")


def test_a_failure_goes_to_the_computer_and_the_others_try_in_turn(cache: Cache, directory: Path) -> None:
    first, rest = started(cache, 3)
    with contextlib.ExitStack() as stack:
        for child in (first, *rest):
            stack.enter_context(child)
        first.send("fail")
        assert first.receive() == ("failed", "RuntimeError: as told")
        second = next_computer(rest)
        second.send("fail")
        assert second.receive() == ("failed", "RuntimeError: as told")
        rest.remove(second)
        third = next_computer(rest)
        rest.remove(third)
        assert not rest[0].connection.poll(0)  # one at a time
        third.send("value")
        assert third.receive() == ("got", "value")
        assert rest[0].receive() == ("got", "value")
    assert len(files(directory)) == 1


def next_computer(children: list[Child]) -> Child:
    found: list[Child] = []

    def look() -> bool:
        found[:] = [child for child in children if child.connection.poll(0)]
        return bool(found)

    wait_until(look, "one that computes")
    assert len(found) == 1
    assert found[0].receive() == "computing"
    return found[0]


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_computer_that_dies_is_replaced_by_one_who_waits(cache: Cache, directory: Path, end: str) -> None:
    first, rest = started(cache, 5)
    with contextlib.ExitStack() as stack:
        for child in rest:
            stack.enter_context(child)
        with first:
            if end == "kill":
                first.kill()
            else:
                first.send("exit")
                assert first.wait() == 0
        second = next_computer(rest)
        second.send("value")
        assert [child.receive() for child in rest] == [("got", "value")] * 5
    assert len(files(directory)) == 1


def test_a_stopped_computer_is_waited_for_as_long_as_one_likes(cache: Cache) -> None:
    first, _ = started(cache, 0)
    with first:
        os.kill(first.pid, signal.SIGSTOP)
        try:
            for timeout in (0, 0.05):
                with pytest.raises(CacheTimeout, match=r"'a'.*computed by another.*longer timeout") as caught:
                    cache.get(KEY, refuse, timeout=timeout)
                assert (caught.value.key, caught.value.waited) == (KEY, timeout)
            with pytest.raises(TimeoutError):
                asyncio.run(cache.get_async(KEY, refuse, timeout=0.05))
        finally:
            os.kill(first.pid, signal.SIGCONT)
        first.send("value")
        assert first.receive() == ("got", "value")
    assert cache.get(KEY, refuse, timeout=0) == "value"


def test_the_cache_has_a_timeout_of_its_own(directory: Path) -> None:
    cache = Cache(directory, version="1", timeout=0.05)
    first, _ = started(Cache(directory, version="1"), 0)
    with first:
        with pytest.raises(CacheTimeout):
            cache.get(KEY, refuse)
        first.send("value")
        assert first.receive() == ("got", "value")


def test_large_entries_are_written_once(cache: Cache, tmp_path: Path, directory: Path) -> None:
    counted = tmp_path / "count"

    def write(file: Any) -> None:
        computed(counted, lambda: None)()
        file.write(b"x" * 1_000_000)

    def work(_: Any) -> None:
        with cache.open(KEY, write) as file:
            assert file.read() == b"x" * 1_000_000

    with contextlib.ExitStack() as stack:
        for child in [stack.enter_context(Child(work)) for _ in range(8)]:
            assert child.wait() == 0
    assert len(counted.read_text().splitlines()) == 1
    assert len(files(directory)) == 1


def test_waits_that_are_given_up_leave_one_thread_at_most(cache: Cache) -> None:
    before = threading.active_count()
    first, _ = started(cache, 0)
    with first:
        for _ in range(20):
            with pytest.raises(CacheTimeout):
                cache.get(KEY, refuse, timeout=0.001)
        assert threading.active_count() <= before + 1

        async def many() -> None:
            waits = [cache.get_async(KEY, lambda: asyncio.sleep(0), timeout=0.01) for _ in range(20)]
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(outcome, CacheTimeout)

        asyncio.run(many())
        assert threading.active_count() <= before + 1
        first.send("value")
        assert first.receive() == ("got", "value")
    wait_until(lambda: threading.active_count() == before, "the thread's end")


def test_a_child_forked_by_one_who_waits_keeps_nobody_out(cache: Cache, directory: Path) -> None:
    """It starts without its parent's descriptors, so what the kernel then grants its parent it does not hold on to."""
    first, _ = started(cache, 0)
    with first, ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(cache.get, KEY, lambda: "mine", timeout=timeout) for timeout in (None, LIMIT)]
        wait_blocked(lock_path(directory, KEY), 2)
        with Child(lambda connection: connection.recv()) as child:
            first.kill()
            assert [wait.result(LIMIT) for wait in waits] == ["mine"] * 2
            cache.delete(KEY)
            assert cache.get(KEY, lambda: "again", timeout=0) == "again"
            child.send("end")


# What a computation may get itself.


def test_a_computation_may_get_other_entries(cache: Cache) -> None:
    assert cache.get("a", lambda: cache.get("b", lambda: 1) + cache.get("c", lambda: 2)) == 3
    assert cache.get("b", refuse) == 1


def test_a_computation_that_gets_itself_is_told(cache: Cache, directory: Path) -> None:
    with pytest.raises(LockDeadlockError, match="wait for itself"):
        cache.get("a", lambda: cache.get("b", lambda: cache.get("a", refuse)))
    assert cache.get("a", lambda: 1) == 1
    other = Cache(directory, version="1")  # another object, the same entry
    with pytest.raises(LockDeadlockError):
        cache.get("b", lambda: other.get("b", refuse))


async def test_a_task_that_gets_what_its_own_computation_waits_for_is_told(cache: Cache) -> None:
    async def inner() -> Any:
        return await cache.get_async("a", lambda: asyncio.sleep(0, 1))

    async def outer() -> Any:
        return await asyncio.gather(inner(), asyncio.create_task(inner()))

    with pytest.raises(LockDeadlockError):
        await cache.get_async("a", outer)


def test_two_threads_that_wait_for_each_other_are_told(cache: Cache) -> None:
    both = threading.Barrier(2)
    outcomes: list[Any] = []

    def work(mine: str, other: str) -> None:
        def compute() -> Any:
            both.wait(LIMIT)
            return cache.get(other, lambda: f"{other} by {mine}")

        try:
            outcomes.append(cache.get(mine, compute))
        except LockDeadlockError:
            outcomes.append("told")

    threads = [threading.Thread(target=work, args=names, daemon=True) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    # One raises; the other then computes what the first did not.
    assert sorted(outcomes) in (["a by b", "told"], ["b by a", "told"])


def test_two_processes_that_wait_for_each_other_end_with_the_timeout(cache: Cache) -> None:
    def work(connection: Any, mine: str, other: str) -> None:
        def compute() -> Any:
            connection.send("computing")
            connection.recv()
            return cache.get(other, lambda: "value", timeout=0.2)

        try:
            connection.send(cache.get(mine, compute))
        except CacheTimeout:
            connection.send("timeout")

    with Child(lambda c: work(c, "a", "b")) as one, Child(lambda c: work(c, "b", "a")) as other:
        for child in (one, other):
            assert child.receive() == "computing"
        one.send("continue")
        assert one.receive() == "timeout"
        other.send("continue")
        assert other.receive() == "value"


def test_a_task_that_outlives_its_computation_may_get_the_entry(cache: Cache) -> None:
    async def main() -> Any:
        later: list[asyncio.Task[Any]] = []
        done = asyncio.Event()

        async def after() -> Any:
            await done.wait()
            return await cache.get_async("a", lambda: asyncio.sleep(0, "again"))

        async def compute() -> str:
            later.append(asyncio.create_task(after()))
            return "value"

        await cache.get_async("a", compute)
        cache.delete("a")
        done.set()
        return await later[0]

    assert asyncio.run(main()) == "again"


# Forks.


@pytest.mark.usefixtures("any_fork")
def test_a_child_forked_by_a_computation_neither_ends_nor_stores_it(cache: Cache, directory: Path) -> None:
    def compute() -> Any:
        def in_child() -> Any:
            return os.path.exists(lock_path(directory, KEY))

        assert run_forked(in_child)
        # A child that leaves the computation by itself: it must not touch what its parent holds.
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            return "from the child"
        os.close(write)
        os.read(read, 1)  # the child has ended
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert lock_path(directory, KEY).exists()
        assert len(files(directory)) == 1
        return "value"

    parent = os.getpid()
    got = cache.get(KEY, compute)
    if os.getpid() != parent:
        os._exit(7 if got == "from the child" else 8)
    assert got == "value"
    assert cache.get(KEY, refuse) == "value"


@pytest.mark.usefixtures("any_fork")
def test_a_forked_child_may_get_what_its_parent_computes(cache: Cache) -> None:
    """It is another process: it waits, and is not taken for its parent's computation."""

    def compute() -> str:
        with pytest.raises(CacheTimeout):
            run_in_child(lambda: cache.get(KEY, refuse, timeout=0))
        return "value"

    assert cache.get(KEY, compute) == "value"


def run_in_child(work: Callable[[], Any]) -> None:
    def outcome() -> Any:
        try:
            work()
        except CacheTimeout as error:
            return error
        return None

    error = run_forked(outcome)
    if error is not None:
        raise error


# The interleavings of single_flight.py, forced: the steps of each side are taken one at a time.


class Party:
    """A caller that found no entry and goes through `single_flight.fill` step by step, in a thread of its own."""

    def __init__(self, path: Path, entry: dict[str, Any], value: Any = None) -> None:
        self.steps: list[str] = []
        self.outcome: Any = None
        self._entry, self._path = entry, path
        self._value = value
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def _run(self) -> None:
        steps = single_flight.fill(str(self._path), self, None)
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                self.steps.append(self._name(step))
                self._pause()
                if isinstance(step, single_flight.Acquire):
                    try:
                        step.lock.acquire(step.timeout)
                        answer = True
                    except TimeoutError:
                        answer = False
                elif isinstance(step, single_flight.Wait):
                    answer = lock_wait.wait(step.path, step.timeout)
                elif isinstance(step, single_flight.Compute):
                    answer = self._value
                else:
                    answer = step.work()
        except StopIteration as end:
            self.outcome = end.value
        self.steps.append("end")
        self._arrived.release()

    @staticmethod
    def _name(step: Any) -> str:
        if isinstance(step, single_flight.Acquire):
            return "try" if step.timeout == 0 else "queue"
        return type(step).__name__.lower()

    def _pause(self) -> None:
        self._arrived.release()
        assert self._go.acquire(timeout=LIMIT)

    def _wait(self) -> None:
        assert self._arrived.acquire(timeout=LIMIT), self.steps

    def load(self) -> Any:
        return self._entry.get("value", Absent.MISSING)

    def clear(self) -> None:
        pass

    def store(self, value: Any, /) -> Any:
        self._entry["value"] = value
        return value

    def step(self) -> str:
        """Take the step at hand, and say which comes then."""
        self.begin()
        return self.arrive()

    def begin(self) -> None:
        """Take a step that blocks."""
        self._go.release()

    def arrive(self) -> str:
        """Which step comes after one that blocked."""
        self._wait()
        return self.steps[-1]

    def to(self, name: str) -> None:
        while self.steps[-1] != name:
            self.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "entry.lock"


def test_opened_before_the_removal_and_granted_after_it(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, "value")
    first.to("compute")
    second = Party(path, entry)
    second.to("wait")
    second.begin()
    wait_blocked(path)
    first.to("end")
    assert second.arrive() == "end"
    assert second.outcome == "value"
    assert not path.exists()


def test_refused_before_the_removal_and_opened_after_it(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, "value")
    first.to("compute")
    second = Party(path, entry)
    second.to("wait")
    first.to("end")
    assert not path.exists()
    assert second.step() == "end"
    assert second.outcome == "value"
    assert not path.exists()


def test_found_nothing_before_and_tried_after_the_computation(path: Path) -> None:
    entry: dict[str, Any] = {}
    second = Party(path, entry)
    first = Party(path, entry, "value")
    first.to("end")
    assert second.step() == "end"
    assert second.outcome == "value"
    assert not path.exists()


def test_the_next_computer_after_a_failure_keeps_out_one_who_comes_between(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, single_flight.Failure(RuntimeError()))
    first.to("compute")
    second, third = Party(path, entry, "second"), Party(path, entry, "third")
    second.to("wait")
    second.begin()
    wait_blocked(path)
    first.to("end")
    assert second.arrive() == "queue"
    assert second.step() == "compute"
    third.to("wait")
    third.begin()
    wait_blocked(path)
    second.to("end")
    assert third.arrive() == "end"
    assert third.outcome == "second"
    assert not path.exists()


def test_the_lock_file_goes_before_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the name of the next leader's file would be removed, and a third would compute at the same time."""
    entry: dict[str, Any] = {}
    parties: list[Party] = []
    real = single_flight._release

    def release(lock: Any) -> None:
        real(lock)
        monkeypatch.undo()
        parties.append(Party(path, entry, "second"))
        parties[0].to("compute")

    first = Party(path, entry, single_flight.Failure(RuntimeError()))
    first.to("compute")
    monkeypatch.setattr(single_flight, "_release", release)
    first.to("end")
    third = Party(path, entry, "third")
    assert third.step() == "wait"
    parties[0].to("end")
    third.to("end")
    assert third.outcome == "second"


def test_all_who_wait_through_one_thread_are_told(path: Path) -> None:
    """While those that were notified already remove themselves from its list."""
    told: list[int] = []
    with FileLock(path):
        for number in range(4):
            stack = contextlib.ExitStack()

            def notify(number: int = number, stack: contextlib.ExitStack = stack) -> None:
                told.append(number)
                stack.close()

            stack.enter_context(lock_wait._watched(str(path), notify))
        wait_blocked(path)
    wait_until(lambda: sorted(told) == [0, 1, 2, 3], "all of them")


def test_queued_for_a_file_that_is_removed_before_the_grant(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, single_flight.Failure(RuntimeError()))
    first.to("compute")
    second, third, fourth = Party(path, entry, "second"), Party(path, entry), Party(path, entry)
    for party in (second, third, fourth):
        party.to("wait")
        party.begin()
    wait_blocked(path, 3)
    first.to("end")
    assert [party.arrive() for party in (second, third, fourth)] == ["queue"] * 3
    assert second.step() == "compute"
    for party in (third, fourth):
        party.begin()
    wait_blocked(path, 2)
    second.to("end")
    for party in (third, fourth):
        assert party.arrive() == "end"
        assert party.outcome == "second"
    assert not path.exists()


def test_a_newcomer_computes_before_one_who_was_woken_by_a_failure(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, single_flight.Failure(RuntimeError()))
    first.to("compute")
    second = Party(path, entry, "second")
    second.to("wait")
    first.to("end")
    third = Party(path, entry, "third")
    third.to("compute")
    second.begin()  # waits, shared, for the newcomer
    wait_blocked(path)
    third.to("end")
    assert second.arrive() == "end"
    assert second.outcome == "third"
    assert not path.exists()


def test_between_the_wait_and_the_queue_another_computes(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, single_flight.Failure(RuntimeError()))
    first.to("compute")
    second = Party(path, entry, "second")
    second.to("wait")
    first.to("end")
    assert second.step() == "queue"
    third = Party(path, entry, "third")
    third.to("end")
    assert second.step() == "end"
    assert second.outcome == "third"
    assert not path.exists()


def test_a_lock_file_that_a_killed_computer_left_stands_in_nobodys_way(path: Path) -> None:
    path.touch()
    party = Party(path, {}, "value")
    party.to("end")
    assert party.outcome == "value"
    assert not path.exists()


def test_a_lock_file_that_somebody_removes_costs_a_computation_and_no_more(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, "first")
    first.to("compute")
    path.unlink()
    second = Party(path, entry, "second")
    second.to("end")
    first.to("end")
    assert (first.outcome, second.outcome) == ("first", "second")
    assert not path.exists()


def test_a_sweeper_leaves_the_lock_of_a_computer(path: Path) -> None:
    entry: dict[str, Any] = {}
    first = Party(path, entry, "value")
    first.to("compute")
    assert single_flight.sweep(str(path)) is False
    assert path.exists()
    first.to("end")
    path.touch()
    assert single_flight.sweep(str(path)) is True
    assert not path.exists()
    assert single_flight.sweep(str(path)) is False
    assert not path.exists()
