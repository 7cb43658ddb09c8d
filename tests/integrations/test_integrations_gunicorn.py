"""The real gunicorn, with its worker classes: one migration, a part in the volume for each worker, one drain."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.integrations.served import Place, Served, Slow
from support.named import take_lock
from support.processes import LIMIT, blocked, is_free, wait_until
from support.servers import Server

from sharedvol import FileLock, Volume
from sharedvol.integrations import Service
from sharedvol.integrations.gunicorn import hooks

STARLETTE = "shop_starlette:app"
KINDS = {
    "sync": ("shop_flask:app", "sync"),
    "gthread": ("shop_flask:app", "gthread"),
    "gevent": ("shop_flask:app", "gevent"),
    "uvicorn": (STARLETTE, "uvicorn_worker.UvicornWorker"),
    "asgi": (STARLETTE, "asgi"),
}


def _workers(place: Place, kind: str = "sync", *options: str, **environment: str) -> Served:
    app, worker_class = KINDS[kind]
    if kind == "gthread":  # it takes more connections than it has threads, so one more than the slow request needs
        options = (*options, "--threads", "2")
    return place.gunicorn("-k", worker_class, "-w", "2", *options, app=app, **environment)


@pytest.mark.parametrize("kind", KINDS)
def test_the_master_migrates_once_and_the_workers_drain(place: Place, kind: str) -> None:
    with _workers(place, kind) as served:
        served.until("ready")
        pids = served.pids(2)
        master, token = place.runs[0].split()
        assert int(master) == served.process.pid
        assert served.process.pid not in pids
        abouts = [served.ask().body for _ in range(20)]
        assert {about["slot"] for about in abouts} == {0}
        assert {about["replica"] for about in abouts} == {"3f9c0d1e2b4a"}
        assert token not in {about["worker"] for about in abouts}
        assert len({(about["pid"], about["worker"]) for about in abouts}) == len({about["pid"] for about in abouts})
        assert is_free(place.path / "shop.db.migration-lock")
        slow = Slow(served, place)
        with slow.under_way():
            served.tell()
            served.until("draining")
            assert served.ask().code == 200
            served.tell()  # a second one ends the drain
            wait_until(lambda: served.log.count("Handling signal: term") == 2, "the end of the drain")
        assert slow.answer().code == 200
        assert served.wait() == 0
    for pid in pids:  # none was killed, as one that drains once more would be
        assert f"Worker exiting (pid: {pid})" in served.log or f"Finished server process [{pid}]" in served.log
    assert place.is_alive() is False
    assert len(place.runs) == 1


@pytest.mark.parametrize("kind", ["gthread", "gevent", "uvicorn", "asgi"])
def test_a_kept_connection_is_closed_by_an_answer_of_the_drain(place: Place, kind: str) -> None:
    with _workers(place, kind, "--keep-alive", "1000") as served:
        served.until("ready")
        with contextlib.closing(served.connect()) as kept:
            assert served.ask("/", kept).headers.get("connection") != "close"
            served.tell()
            served.until("draining")
            answer = served.ask("/", kept)
            assert (answer.code, answer.headers["connection"]) == (200, "close")
        served.tell()
        assert served.wait() == 0


def test_a_worker_of_greenlets_answers_while_requests_wait_for_a_lock(place: Place) -> None:
    with (
        place.gunicorn("-k", "gevent", "-w", "1", app="shop_flask:app", SHOP_DRAIN="0") as served,
        ThreadPoolExecutor() as pool,
    ):
        served.until("ready")
        slow = Slow(served, place, "/locked")
        with slow.under_way():
            others = [pool.submit(served.ask, "/locked") for _ in range(3)]
            wait_until(lambda: blocked(place.path / "shop.lock") == 3, "three requests to wait for the lock")
            assert served.ask().code == 200
            assert served.ask("/health/ready").code == 200
            assert not any(other.done() for other in others)
        assert [slow.answer().code, *(other.result(LIMIT).code for other in others)] == [200] * 4
        served.tell()
        assert served.wait() == 0


def test_a_reload_in_the_middle_of_a_drain_does_not_end_it(place: Place) -> None:
    with _workers(place) as served:
        served.until("ready")
        first = served.pids(2)
        served.tell()
        served.until("draining")
        served.tell(signal.SIGHUP)
        wait_until(lambda: served.pids(1).isdisjoint(first), "new workers")
        assert served.reason() == "draining"
        served.tell()  # the second of the drain's, and no first one
        assert served.wait() == 0


def test_workers_that_are_replaced_do_not_make_the_replica_unready(place: Place) -> None:
    with _workers(place, "sync", "--max-requests", "3", SHOP_DRAIN="0.2") as served:
        served.until("ready")
        first = served.pids(2)
        seen: set[int] = set()

        def look() -> bool:
            answer = served.ask("/health/ready")
            assert answer.code == 200, answer
            seen.add(served.ask().body["pid"])
            return len(seen - first) >= 2

        wait_until(look, "workers recycled by max_requests")
        served.tell(signal.SIGHUP)
        wait_until(lambda: served.ask("/health/ready").code == 200 and len(place.runs) == 2, "the reload's migrations")
        assert served.reason() == "ready"
        assert place.is_alive()
        assert served.ask().body["slot"] == 0
        served.tell()
        assert served.wait() == 0
    assert "Draining" in served.log
    assert place.is_alive() is False
    assert {run.split()[0] for run in place.runs} == {str(served.process.pid)}


def test_a_reload_applies_new_migrations_and_a_failure_ends_all(place: Place) -> None:
    with _workers(place, "gthread", SHOP_DRAIN="0") as served:
        served.until("ready")
        place.migration("002_more.sql", "CREATE TABLE more (id INT);")
        served.until("migrations_pending")
        served.tell(signal.SIGHUP)
        served.until("ready")
        place.migration("003_bad.sql", "CREATE NONSENSE;")
        served.tell(signal.SIGHUP)
        assert served.wait() == 3
    assert "003_bad.sql" in served.log
    assert place.is_alive() is False


def test_a_killed_worker_leaves_nothing_behind_and_is_replaced(place: Place) -> None:
    with _workers(place, "sync", "--timeout", "2", SHOP_DRAIN="0") as served:
        served.until("ready")
        first, second = served.pids(2)
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGKILL)
        assert place.is_alive()  # by its master
        wait_until(lambda: served.code("/") == 200 and served.pids(2).isdisjoint({first, second}), "new workers")
        assert served.ask().body["slot"] == 0
        assert [replica.name for replica in Volume(place.path / "volume").replicas()] == ["3f9c0d1e2b4a"]
        served.process.kill()
        served.process.wait(LIMIT)
        wait_until(lambda: place.is_alive() is False, "the end of orphans")


def test_what_the_master_hears_of_a_dead_worker_is_not_its_own_end(place: Place) -> None:
    service = Service(volume=place.path / "volume")
    made = hooks(service)
    service.start()
    made["worker_exit"](None, SimpleNamespace(pid=os.getpid() + 1))
    assert service.started
    made["worker_exit"](None, SimpleNamespace(pid=os.getpid()))
    assert not service.started


def test_a_failed_migration_ends_the_master_before_it_listens(place: Place) -> None:
    place.migration("002_bad.sql", "CREATE NONSENSE;")
    with _workers(place, "sync", "-p", str(place.path / "pid")) as served:
        assert served.wait() == 3
    assert "002_bad.sql" in served.log
    assert "Listening" not in served.log
    assert not (place.path / "pid").exists()
    assert place.is_alive() is False


def test_sigterm_while_the_master_waits_for_the_lock_ends_it(place: Place, _server_of: Callable[[str], Server]) -> None:
    server = _server_of("mariadb")
    name = f"lock_{os.urandom(4).hex()}"
    with contextlib.closing(server.connect()) as other, other.cursor() as cursor:
        take_lock(cursor, name)
        with _workers(place, SHOP_DATABASE=server.url(server.create_database()), SHOP_LOCK=name) as served:
            wait_until(lambda: f"{name!r}, held by" in served.log or _waits(server), "a master that waits")
            served.tell()
            assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def _waits(server: Server) -> bool:
    return any(
        "GET_LOCK" in (row[0] or "")
        for row in server.query("SELECT info FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
    )


def test_sigterm_while_a_reload_waits_ends_it(place: Place) -> None:
    with _workers(place, SHOP_DRAIN="0") as served:
        served.until("ready")
        place.migration("002_more.sql", "CREATE TABLE more (id INT);")
        with FileLock(place.path / "shop.db.migration-lock"):
            served.tell(signal.SIGHUP)
            wait_until(lambda: len(place.runs) == 2, "a reload")
            served.tell()
            assert served.wait() == 0
    assert place.is_alive() is False


def test_sigterm_that_does_not_wake_the_master_ends_its_wait() -> None:
    """As one that comes just before the master sleeps: here it is another thread's."""
    service, over, ended = Service(drain=0), threading.Event(), []

    def sleeps() -> bool:
        return sys._current_frames()[threading.main_thread().ident or 0].f_code.co_name in ("_next", "_wait_for")

    def migrations() -> None:
        for _ in range(20):  # it may still be on its way to sleep; then the signal is seen in any case
            wait_until(sleeps, "the master to wait")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        over.wait(LIMIT)
        ended.append(True)

    service.run_migrations = migrations  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    arbiter = Arbiter()
    try:
        signal.signal(signal.SIGTERM, arbiter.signal)
        hooks(service)["on_reload"](arbiter)
        assert (ended, arbiter.queued) == ([], [signal.SIGTERM])
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)


class Arbiter:
    """As much of gunicorn's master as a reload sees."""

    def __init__(self) -> None:
        self.log = logging.getLogger("arbiter")
        self.cfg = SimpleNamespace(graceful_timeout=30)
        self.queued: list[int] = []
        self.shut_down = False

    def signal(self, number: int, frame: object) -> None:
        self.queued.append(number)

    def handle_term(self) -> None:
        self.shut_down = True


def test_sigterm_that_was_queued_before_the_reload_ends_its_wait() -> None:
    """gunicorn acts on it between two steps, and the reload is one."""
    service, waited = Service(drain=0), []
    service.run_migrations = lambda: waited.append(True)  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    arbiter = Arbiter()
    try:
        signal.signal(signal.SIGTERM, arbiter.signal)
        hooks(service)["when_ready"](arbiter)
        for _ in range(2):  # each reload makes hooks of its own
            arbiter.queued.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            hooks(service)["on_reload"](arbiter)
            assert arbiter.queued == [signal.SIGTERM]  # once: a second one would end the drain
            assert waited == []
            arbiter.handle_term()
        assert arbiter.shut_down
        hooks(service)["on_reload"](arbiter)  # acted on: it is waited for again
        assert waited == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_old_master_that_makes_room_for_a_new_one_does_not_drain(place: Place) -> None:
    """SIGUSR2 starts a new master on the same port, so the replica stays."""
    with place.gunicorn() as served:
        served.until("ready")
        (old,) = served.pids(1)
        served.tell(signal.SIGUSR2)
        new = next(iter(served.pids(2) - {old}))
        answers = {served.reason()}
        served.tell()
        while served.process.poll() is None:
            answers.add(served.reason())
        assert served.wait() == 0
        assert answers == {"ready"}
        assert served.pids(1) == {new}
        assert place.is_alive()
        os.kill(int(Path(f"/proc/{new}/stat").read_text().split()[3]), signal.SIGTERM)  # the new master, now alone
        wait_until(lambda: served.reason() == "draining", "the drain of the new master")


def test_without_the_hooks_each_worker_says_what_is_amiss(place: Place, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("control_socket_disable = True\n")
    with place.gunicorn(
        "-k", KINDS["uvicorn"][1], "-c", str(tmp_path / "plain.py"), app=STARLETTE, SHOP_DRAIN="0.1"
    ) as served:
        served.until("ready")
        served.tell()
        assert served.wait() == 0
    assert "graceful_timeout must be longer than drain" in served.log
    assert place.is_alive() is False
