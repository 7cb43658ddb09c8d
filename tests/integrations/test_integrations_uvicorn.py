"""Starlette under the real uvicorn: start-up, drain, and every way to be stopped at a bad moment."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest
from support.integrations.lowest import lowest
from support.integrations.served import CONNECTION_REFUSED, Place, Served, Slow
from support.named import take_lock
from support.processes import LIMIT, blocked, wait_until
from support.servers import Database, Server

from sharedvol import FileLock, Volume

PATIENT = ("--timeout-worker-healthcheck", "300")
"""Else uvicorn kills a worker that has not started after 5 s, which may be so on a busy machine."""
LAUNCHER = ("python", "-m", "sharedvol.integrations.uvicorn")


@pytest.fixture
def mariadb(place: Place, _server_of: Callable[[str], Server]) -> Iterator[Database]:
    """The migrations of `place` go there."""
    server = _server_of("mariadb")
    database = Database(server, server.create_database())
    place.environment = {"SHOP_DATABASE": database.url, "SHOP_LOCK": f"lock_{database.name}"}
    yield database
    database.drop()


def test_alive_and_not_ready_while_another_replica_migrates(place: Place, mariadb: Database) -> None:
    lock = place.environment["SHOP_LOCK"]
    with contextlib.closing(mariadb.connect()) as other, other.cursor() as cursor:
        take_lock(cursor, lock)
        with place.uvicorn(SHOP_DRAIN="0.1") as served:
            wait_until(lambda: served.code("/health/live") == 200, "an answer")
            wait_until(lambda: served.ask("/health/ready").body.get("state") == "waiting", "a replica that waits")
            answer = served.ask("/health/ready")
            assert (answer.code, answer.body["reason"]) == (503, "migrations_pending")
            assert answer.body["lock_name"] == lock
            assert answer.headers["cache-control"] == "no-store"
            assert place.is_alive()
            cursor.execute("SELECT RELEASE_LOCK(%s)", (lock,))
            served.until("ready")
            ready = served.ask("/health/ready").body
            assert (ready["filenames"], ready["checks"], ready["slot"]) == (["001_orders.sql"], {"gate": "ok"}, 0)
            served.tell()
            assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_sigterm_while_waiting_for_the_lock_ends_it_without_a_drain(place: Place, mariadb: Database) -> None:
    with contextlib.closing(mariadb.connect()) as other, other.cursor() as cursor:
        take_lock(cursor, place.environment["SHOP_LOCK"])
        with place.uvicorn() as served:
            wait_until(lambda: served.code("/health/live") == 200, "an answer")
            wait_until(lambda: served.ask("/health/ready").body.get("state") == "waiting", "a replica that waits")
            served.tell()
            assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_requests_are_answered_while_it_drains_and_finished_after(place: Place) -> None:
    with place.uvicorn() as served:
        served.until("ready")
        kept = served.connect()
        assert served.ask("/", kept).headers.get("connection") is None
        before = Slow(served, place)
        with before.under_way():
            served.tell()
            served.until("draining")
            accepted = served.ask("/", kept)
            assert (accepted.code, accepted.headers["connection"]) == (200, "close")
            assert served.ask("/health/live").code == 200
            served.tell()  # a second one ends the drain
            wait_until(lambda: "Shutting down" in served.log, "the end of the drain")
            assert served.process.poll() is None
        assert before.answer().code == 200
        assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_sigint_does_not_drain(place: Place) -> None:
    with place.uvicorn() as served:
        served.until("ready")
        served.tell(signal.SIGINT)
        assert served.wait() in (0, -signal.SIGINT)


def test_what_a_second_sigterm_leaves_of_a_migration_the_next_replica_does(place: Place, mariadb: Database) -> None:
    mariadb.query("CREATE TABLE gate (id INT PRIMARY KEY) ENGINE = InnoDB")
    place.migration("002_slow.sql", "INSERT INTO gate VALUES (1);\nCREATE TABLE slow (id INT);")
    with contextlib.closing(mariadb.connect()) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLES gate WRITE")
        with place.uvicorn() as served:
            wait_until(lambda: served.code("/health/live") == 200, "an answer")
            wait_until(
                lambda: "INSERT INTO gate" in str(served.ask("/health/ready").body.get("activity")), "a slow statement"
            )
            served.tell()
            served.until("draining")
            assert served.ask().code == 200
            served.tell()
            assert served.wait() == -signal.SIGTERM
    with place.uvicorn(SHOP_DRAIN="0") as served:
        served.until("ready")
        assert served.ask("/health/ready").body["filenames"] == ["002_slow.sql"]
        assert mariadb.query("SELECT * FROM gate") == [(1,)]
        served.tell()
        assert served.wait() == -signal.SIGTERM


def test_a_failed_migration_ends_the_process_with_a_failure(place: Place) -> None:
    place.migration("002_bad.sql", "CREATE TABLE b (id INT);\nCREATE NONSENSE;")
    place.migration("003_more.sql", "CREATE TABLE c (id INT);")
    with place.uvicorn() as served:
        codes = {served.code("/health/ready")}
        while served.process.poll() is None:
            codes.add(served.code("/health/ready"))
        assert served.wait() == 3
    assert 200 not in codes
    assert "002_bad.sql: statement 2" in served.log
    assert "applied by this run before: 001_orders.sql" in served.log
    assert "ends with status 3" in served.log


def test_a_volume_that_cannot_be_joined_ends_the_process_with_a_failure(place: Place) -> None:
    (place.path / "volume").rmdir()
    with place.uvicorn() as served:
        assert served.wait() == 3
    assert "volume" in served.log
    assert place.runs == []


@pytest.mark.parametrize("moment", ["import", "then"])
def test_sigterm_before_it_serves_ends_it(place: Place, moment: str) -> None:
    place.fifo(moment)
    with place.uvicorn() as served:
        with place.reader(moment):
            served.tell()
        assert served.wait() == -signal.SIGTERM
    assert not place.is_alive()


def test_sigterm_before_the_lifespan_has_begun_does_not_wait_for_others_who_join(place: Place) -> None:
    with Volume(place.path / "volume").join("other"):
        pass
    place.fifo("import")
    lock = FileLock(place.path / "volume" / ".replicas" / "join.lock")
    # With a parent process, uvicorn has its handlers before it imports the application.
    with lock, place.uvicorn("--reload") as served:
        with place.reader("import"):
            (child,) = served.children("spawn_main")
            watch = os.pidfd_open(child)
            os.kill(child, signal.SIGTERM)
        assert select.select([watch], [], [], LIMIT)[0], served.log
        os.close(watch)
        served.tell()
        assert served.wait() == 0
    assert place.runs == []
    assert not place.is_alive()


def test_sigterm_while_others_join_ends_it(place: Place) -> None:
    with Volume(place.path / "volume").join("other"):
        pass
    lock = place.path / "volume" / ".replicas" / "join.lock"
    with FileLock(lock), place.uvicorn() as served:
        wait_until(lambda: blocked(lock) == 1, "one who joins")
        served.tell()
        assert served.wait() == -signal.SIGTERM


def test_a_check_that_hangs_holds_up_neither_answers_nor_the_end(place: Place) -> None:
    with place.uvicorn() as served:
        served.until("ready")
        (place.path / "broken").touch()
        assert served.ask("/health/ready").body["checks"] == {"gate": "returned False"}
        place.fifo("hang")
        for _ in range(3):
            answer = served.ask("/health/ready")
            assert (answer.code, answer.body["reason"]) == (503, "gate")
            assert "no answer for" in answer.body["error"]
        assert served.ask("/health/live").code == 200
        served.tell()
        served.until("draining")
        served.tell(signal.SIGINT)  # the interpreter ends in order, and would wait for threads of another kind
        assert served.wait() in (0, -signal.SIGINT)


def test_a_check_that_takes_long_does_not_stop_the_event_loop(place: Place) -> None:
    with place.uvicorn(SHOP_CHECK_TIMEOUT="50") as served:
        served.until("ready")
        asked = Slow(served, place, "/health/ready", "hang")
        with asked.under_way():
            assert served.ask("/health/live").code == 200
            assert served.ask().code == 200
        assert asked.answer().code == 200


def test_workers_share_a_slot_and_a_killed_one_is_replaced(place: Place) -> None:
    with place.uvicorn("--workers", "2", SHOP_DRAIN="0.5") as served:
        served.until("ready")
        first, second = served.pids(2)
        assert served.ask().body["slot"] == 0
        assert [replica.slot for replica in Volume(place.path / "volume").replicas()] == [0]
        os.kill(first, signal.SIGKILL)
        assert place.is_alive()
        wait_until(lambda: served.pids(1) != {first} and _answers_of(served) - {first, second} != set(), "a new worker")
        assert served.ask().body["slot"] == 0
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


@pytest.mark.usefixtures("each_uvicorn")
def test_a_failed_migration_ends_all_workers(place: Place) -> None:
    place.migration("002_bad.sql", "CREATE NONSENSE;")
    with place.uvicorn("--workers", "2", program=LAUNCHER) as served:
        assert served.wait() == 3
    assert place.is_alive() is False


def test_a_volume_that_cannot_be_joined_ends_all_workers_of_the_oldest_uvicorn(place: Place) -> None:
    place.packages = (lowest("uvicorn"),)
    (place.path / "volume").rmdir()
    with place.uvicorn("--workers", "2", program=LAUNCHER) as served:
        assert served.wait() == 3


@pytest.mark.usefixtures("each_uvicorn")
def test_sigterm_while_workers_are_replaced_reaches_all_of_them(place: Place) -> None:
    patient = () if place.packages else PATIENT
    with place.uvicorn("--workers", "2", *patient, program=LAUNCHER) as served:
        served.until("ready")
        served.pids(2)
        served.tell(signal.SIGHUP)
        wait_until(
            lambda: "Waiting for child process" in served.log.partition("Received SIGHUP")[2], "a worker that drains"
        )
        served.tell()
        _wait_until_drained(served, lambda: set(served.children("spawn_main")))
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


def test_sigterm_while_a_replacement_is_imported_reaches_the_others(place: Place) -> None:
    with place.uvicorn("--workers", "2", *PATIENT, program=LAUNCHER) as served:
        served.until("ready")
        old = served.pids(2)
        place.fifo("import")
        served.tell(signal.SIGHUP)
        with place.reader("import"):
            served.tell()
            _wait_until_drained(served, lambda: old)
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


def test_a_second_sigterm_reaches_the_workers(place: Place) -> None:
    with place.uvicorn("--workers", "2", program=LAUNCHER) as served:
        served.until("ready")
        served.pids(2)
        served.tell()
        served.until("draining")
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


def test_a_reload_does_not_drain(place: Place) -> None:
    source = place.path / "source"
    source.mkdir()
    (source / "code.py").write_text("a = 1\n")
    with place.uvicorn("--reload", "--reload-dir", str(source), "--reload-delay", "0.05") as served:
        served.until("ready")
        (first,) = served.pids(1)
        (source / "code.py").write_text("a = 2  # longer\n")
        wait_until(lambda: _answers_of(served) - {first} != set(), "a new process")
        served.until("ready")
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


def test_a_program_that_reloads_does_not_drain_either(place: Place) -> None:
    (place.path / "develop.py").write_text(
        "import sys, uvicorn\n"
        "if __name__ == '__main__':\n"
        "    uvicorn.run('shop_starlette:app', port=int(sys.argv[-1]), reload=True, reload_delay=0.05)\n"
    )
    with place.develop("develop.py") as served:
        served.until("ready")
        (first,) = served.pids(1)
        (place.path / "develop.py").write_text("# saved\n")
        wait_until(lambda: _answers_of(served) - {first} != set(), "a new process")
        served.tell()
        assert served.wait() == 0
    assert place.is_alive() is False


def _wait_until_drained(served: Served, workers: Callable[[], set[int]]) -> None:
    """Until each of ``workers`` has closed a connection because it drains."""
    draining: set[int] = set()

    def look() -> bool:
        answer = served.ask()
        if answer.headers.get("connection") == "close":
            draining.add(answer.body["pid"])
        return draining >= workers()

    wait_until(look, f"a drain of all workers\n{served.log}")


def _answers_of(served: Served) -> set[int]:
    try:
        return {served.ask().body["pid"]}
    except CONNECTION_REFUSED:
        return set()
