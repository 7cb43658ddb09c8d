"""Waits for locks in a process of gevent's: other greenlets run meanwhile, the holder of the lock among them.

The locks of servers are in test_lock_engines.py.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.greenlets import PATCHED
from support.processes import run_python

from sharedvol import Cache, FileLock, LockError, Semaphore

FILES = """
place = sys.argv[1]
shared_object = FileLock(f"{place}/one")
semaphore = Semaphore(f"{place}/one-semaphore", 1)
kinds = {
    "plain": lambda: FileLock(f"{place}/plain"),
    "plain bounded": lambda: FileLock(f"{place}/plain", timeout=1000),
    "fenced": lambda: FileLock(f"{place}/fenced", fenced=True),
    "fenced bounded": lambda: FileLock(f"{place}/fenced", fenced=True, timeout=1000),
    "one object": lambda: shared_object,
    "semaphore": lambda: Semaphore(f"{place}/semaphore", 1),
    "semaphore bounded": lambda: Semaphore(f"{place}/semaphore", 1, timeout=1000),
    "one semaphore": lambda: semaphore,
}
print({name: contend(make) for name, make in kinds.items()})
"""


def test_greenlets_exclude_each_other_and_wait_without_stopping_the_process(tmp_path: Path) -> None:
    found = eval(run_python(PATCHED + FILES, str(tmp_path)))
    assert len(found) == 8
    assert set(found.values()) == {1}


GIVEN_UP = """
place = sys.argv[1]
lock = lambda **options: FileLock(f"{place}/x", **options)
semaphore = lambda **options: Semaphore(f"{place}/s", 1, **options)
for make in (lock, semaphore):
    def give_up():
        try:
            with make(timeout=0.02): pass
        except LockTimeout as error:
            assert error.waited == 0.02
        else:
            assert False
        waiting = gevent.spawn(lambda: make().acquire())
        gevent.sleep(0)
        waiting.kill()
        try:
            with gevent.Timeout(0.02), make(): assert False
        except gevent.Timeout:
            pass
    contend(make, give_up)
    with make(timeout=1000): pass
def in_pool():
    with lock(timeout=1000): return 1
held = lock().acquire()
other = gevent.get_hub().threadpool.spawn(in_pool)
gevent.sleep(0.01)
with held: pass
print(other.get())
"""


def test_a_greenlet_that_gives_up_or_is_killed_leaves_the_queue(tmp_path: Path) -> None:
    assert run_python(PATCHED + GIVEN_UP, str(tmp_path)) == "1"


CACHED = """
place, calls, others = sys.argv[1], [], [0]
for timeout in (None, 1000):
    cache = Cache(f"{place}/{timeout}", version="1", timeout=timeout)
    begun, go = gevent.event.Event(), gevent.event.Event()
    def compute():
        calls.append(1); begun.set(); go.wait(); return 5
    get = lambda: Cache(f"{place}/{timeout}", version="1", timeout=timeout).get("k", compute)
    greenlets = [gevent.spawn(get) for _ in range(4)]
    begun.wait()
    for _ in range(5): gevent.sleep(0)
    go.set()
    gevent.joinall(greenlets, raise_error=True)
    assert [one.value for one in greenlets] == [5] * 4
impatient = Cache(f"{place}/None", version="1", timeout=0.02)
begun, go = gevent.event.Event(), gevent.event.Event()
first = gevent.spawn(lambda: cache.get("slow", lambda: (begun.set(), go.wait())))
begun.wait()
try: Cache(f"{place}/1000", version="1", timeout=0.02).get("slow", lambda: 1)
except CacheTimeout: calls.append("late")
go.set(); first.get()
print(calls)
"""


def test_one_greenlet_computes_and_the_others_wait_for_it(tmp_path: Path) -> None:
    code = PATCHED + "from sharedvol.cache import Cache\nfrom sharedvol.errors import CacheTimeout\n" + CACHED
    assert run_python(code, str(tmp_path)) == "[1, 1, 'late']"


EARLY = """
import sys
from sharedvol import *
from sharedvol.integrations import Service
from sharedvol.integrations.checks import Checks
place = sys.argv[1]
lock, checks = FileLock(f"{place}/x"), Checks({"slow": lambda: time.sleep(0.001)}, timeout=1000, max_age=0)
with lock: pass
from gevent import monkey; monkey.patch_all()
import gevent, time
def use():
    with lock: time.sleep(0.001)
    return checks.ask()
greenlets = [gevent.spawn(use) for _ in range(10)]
gevent.joinall(greenlets, raise_error=True)
print({one.value["slow"] for one in greenlets})
"""


def test_what_was_made_before_gevent_patched_works_after_it(tmp_path: Path) -> None:
    assert run_python(EARLY, str(tmp_path)) == "{'ok'}"


ENDED = """
import sys
from sharedvol import *
FileLock(sys.argv[1] + "other").acquire().release()
from gevent import monkey; monkey.patch_all()
import gevent, threading
def take():
    gevent.spawn(lambda: FileLock(sys.argv[1] + "other").acquire().release()).join()
    lock.acquire()
lock = FileLock(sys.argv[1])
kept = gevent.spawn(take); kept.join()
with FileLock(sys.argv[1], timeout=20): pass
gevent.spawn(take).join()
with FileLock(sys.argv[1], timeout=20): pass
thread = threading.Thread(target=take); thread.start(); thread.join()
with FileLock(sys.argv[1], timeout=20): print("free")
"""


def test_a_greenlet_that_ended_leaves_it_free_also_where_gevent_patched_late(tmp_path: Path) -> None:
    assert run_python(ENDED, f"{tmp_path}/x") == "free"


RAW = """
import sys, greenlet, threading
from sharedvol import *
file = lambda **options: FileLock(sys.argv[1], **options)
semaphore = lambda **options: Semaphore(sys.argv[1], 1, **options)
for make in (file, semaphore):
    def wait():
        try: make().acquire()
        except LockDeadlockError: return "refused"
    def give_up():
        try: make().acquire(timeout=0.01)
        except LockTimeout: return "gave up"
    with make():
        assert greenlet.greenlet(wait).switch() == "refused"
        assert greenlet.greenlet(give_up).switch() == "gave up"
    lock = make()
    lock.acquire()
    assert greenlet.greenlet(wait).switch() == "refused"
    lock.release()
    acquired = lock.acquire()  # which another thread may release
    thread = threading.Timer(0.01, acquired.release)
    def release_and_wait():
        thread.start()
        with make(): return "released"
    if WITH_THREADS: assert greenlet.greenlet(release_and_wait).switch() == "released"
    else: acquired.release()
    with make(timeout=10): pass  # a thread that gave up may have the lock for a moment
print("ok")
"""


@pytest.mark.parametrize("patched", [False, True])
def test_a_greenlet_that_waits_for_its_own_thread_is_refused(tmp_path: Path, patched: bool) -> None:
    before = f"{PATCHED}\nWITH_THREADS = False" if patched else "WITH_THREADS = True"
    assert run_python(before + RAW, f"{tmp_path}/x") == "ok"


UNPATCHED = """
import sys, gevent
from sharedvol import *
lock = FileLock(sys.argv[1])
def hold():
    with lock: gevent.sleep(0.01)
def wait():
    try:
        with FileLock(sys.argv[1]): pass
    except LockDeadlockError: print("refused")
gevent.joinall([gevent.spawn(hold), gevent.spawn(wait)], raise_error=True)
"""


def test_greenlets_of_one_thread_do_not_stop_it_where_gevent_did_not_patch(tmp_path: Path) -> None:
    assert run_python(UNPATCHED, f"{tmp_path}/x") == "refused"


MIGRATED = """
url, directory, lock = sys.argv[1:]
held = FileLock(lock).acquire()
run = gevent.spawn(MigrationCoordinator(url, directory, lock_timeout=1000).run)
for _ in range(5): gevent.sleep(0)
assert not run.ready()
with held: pass
run.get()
print(MigrationCoordinator(url, directory).status().state)
"""


def test_a_migration_waits_and_lets_other_greenlets_run(tmp_path: Path) -> None:
    (tmp_path / "001.sql").write_text("CREATE TABLE t (id INT);\n")
    database = tmp_path / "x.db"
    code = PATCHED + MIGRATED
    assert run_python(code, f"sqlite:///{database}", str(tmp_path), f"{database}.migration-lock") == "up_to_date"


@pytest.mark.parametrize(
    "make", [FileLock, lambda path: Semaphore(path, 2), lambda path: Cache(path, version="1").get("k", lambda: 1)]
)
def test_eventlet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]) -> None:
    patcher = types.ModuleType("eventlet.patcher")
    patcher.is_monkey_patched = lambda what: what == "thread"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    with pytest.raises(LockError, match=r"eventlet has replaced.*use gevent"):
        make(tmp_path / "x")


def test_eventlet_that_patches_later_is_refused_when_a_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = FileLock(tmp_path / "x"), FileLock(tmp_path / "x", timeout=1)
    patcher = types.ModuleType("eventlet.patcher")
    patcher.is_monkey_patched = lambda what: what == "thread"  # type: ignore[attr-defined]
    with one:
        monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
        with pytest.raises(LockError, match="eventlet"):
            other.acquire()
