"""R and Python replicas on one lock and one ledger: each file is applied once, whoever starts, waits or is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.named import take_lock
from support.processes import wait_until
from support.r.rmigrations import (
    LOCK,
    LOG,
    Gate,
    Replica,
    coordinator,
    holder,
    is_statement,
    is_waiting,
    logged,
    note,
    numbered,
    python,
    recorded,
    wait_free,
    waiting_for,
    write,
)
from support.servers import Database, Server

FILES = numbered(4)
ROUNDS = 6


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    """An R replica, to migrate one database after the other."""
    with Replica() as made:
        yield made


def assert_all_once(database: Database) -> None:
    assert recorded(database) == dict.fromkeys(FILES, 1)
    assert set(logged(database).values()) == {1} and len(logged(database)) == 2 * (len(FILES) - 1)


def test_two_of_r_and_two_of_python_that_start_at_once_apply_each_file_once(server: Server, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with Replica() as first, Replica() as second:
        for _ in range(ROUNDS):
            database = Database(server, server.create_database())
            with ExitStack() as stack:
                children = [stack.enter_context(python(database, directory)) for _ in range(2)]
                first.send(database, directory)
                children[0].send("go")
                second.send(database, directory)
                children[1].send("go")
                statuses = [child.receive().as_dict() for child in children]
                found = [first.receive(), second.receive()]
            assert [one["error"] for one in found] == [None, None]
            statuses += [one["status"] for one in found]
            assert sum(status["newly_applied"] for status in statuses) == len(FILES)
            assert [name for status in statuses for name in status["filenames"]] == list(FILES)
            for status in statuses:
                assert (status["pending_migrations"], status["total_migrations"]) == (0, len(FILES))
                assert status["state"] == "up_to_date" and status["manifest"]["ok"]
                assert status["fast_path"] or status["lock_acquired"]
            assert_all_once(database)
            database.drop()


def test_python_waits_while_r_migrates(database: Database, tmp_path: Path, replica: Replica) -> None:
    with Gate(database) as gate:
        directory = write(tmp_path / "sql", {**FILES, "002_table.sql": gate.statement + FILES["002_table.sql"]})
        replica.send(database, directory)
        worker = gate.wait_reached()
        assert holder(database.server) == worker  # the lock is on the very connection that migrates
        with python(database, directory, at=is_waiting) as waiter:
            waiter.send("go")
            assert f"connection {worker} " in waiter.receive().detail
            waiter.send("go on")
            wait_until(lambda: bool(waiting_for(database.server, LOCK)), "Python to wait")
            assert recorded(database) == dict.fromkeys(["000_log.sql", "001_table.sql"], 1)
            gate.open()
            idle = waiter.receive()
        done = replica.receive()["status"]
    assert (done["newly_applied"], done["filenames"]) == (len(FILES), list(FILES))
    assert idle.newly_applied == 0 and idle.lock_acquired and not idle.fast_path and idle.ready
    assert_all_once(database)


def test_r_waits_while_python_migrates(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    with python(database, directory, at=is_statement("002_table.sql", 2)) as worker:
        worker.send("go")
        worker.receive()
        replica.send(database, directory, tell=True)
        told = replica.receive()["said"]
        assert told.startswith(f"waiting for lock '{LOCK}', held by connection {holder(database.server)} (root from ")
        wait_until(lambda: bool(waiting_for(database.server, LOCK)), "R to wait on the server")
        worker.send("go on")
        done = worker.receive()
        while "status" not in (found := replica.receive()):
            pass
    status = found["status"]
    assert found["error"] is None and status["newly_applied"] == 0 and status["filenames"] == []
    assert status["lock_acquired"] and not status["fast_path"] and status["waited"] > 0
    assert status["lock_name"] == LOCK and status["lock_holder"] is None and status["activity"] is None
    assert done.newly_applied == len(FILES)
    assert_all_once(database)


def test_python_begins_anew_the_file_in_which_r_was_killed(database: Database, tmp_path: Path) -> None:
    with Gate(database) as gate:
        stopped = f"{note('002', 1)}{gate.statement}{note('002', 3)}"
        directory = write(tmp_path / "sql", {**FILES, "002_table.sql": stopped})
        with Replica() as killed:
            killed.send(database, directory)
            gate.wait_reached()
            killed.process.kill()
            killed.process.wait(60)
        with python(database, directory, at=is_waiting) as heir:
            if holder(database.server) is not None:  # the server has not seen it yet, and keeps the others out
                assert recorded(database) == dict.fromkeys(["000_log.sql", "001_table.sql"], 1)
            gate.open()
            heir.send("go")
            if not isinstance(found := heir.receive(), type(coordinator(database, directory).current)):
                heir.send("go on")
                found = heir.receive()
    assert found.filenames == ["002_table.sql", "003_table.sql", "004_table.sql"]
    assert recorded(database) == dict.fromkeys(FILES, 1)
    # R marks no progress: what a killed R did of a file is done again.
    assert {key: times for key, times in logged(database).items() if times > 1} == {("002", 1): 2}


def test_r_begins_anew_the_file_in_which_another_r_was_killed(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    with Gate(database) as gate:
        stopped = f"{note('002', 1)}{gate.statement}{note('002', 3)}"
        directory = write(tmp_path / "sql", {**FILES, "002_table.sql": stopped})
        with Replica() as killed:
            killed.send(database, directory)
            gate.wait_reached()
            killed.process.kill()
            killed.process.wait(60)
        gate.open()
        status = replica.migrate(database, directory)
    assert status["filenames"] == ["002_table.sql", "003_table.sql", "004_table.sql"]
    assert logged(database)["002", 1] == 2 and logged(database)["002", 3] == 1


def test_r_refuses_the_file_in_which_python_was_killed_and_python_goes_on(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with python(database, directory, at=is_statement("002_table.sql", 3)) as killed:
        killed.send("go")
        killed.receive()
        killed.kill()
    wait_free(database.server)
    found = replica.failing(database, directory)
    assert "sv_half_applied" in found["classes"]
    assert found["error"].startswith(
        "half-applied migration 002_table.sql: 2 of 3 statements are done; a Python replica"
    )
    assert found["status"]["pending"] == ["002_table.sql", "003_table.sql", "004_table.sql"]
    ((half),) = found["status"]["half_applied"]
    assert (half["name"], half["done"], half["next"], half["can_resume"]) == ("002_table.sql", 2, 3, False)
    assert set(half) == set(coordinator(database, directory).status().half_applied[0].as_dict())
    assert found["status"]["filenames"] == [] and found["status"]["lock_acquired"]
    assert logged(database)["002", 3] == 0

    renamed = write(tmp_path / "sql", {name.replace("002_", "002_new_"): text for name, text in FILES.items()})
    found = replica.failing(database, renamed, renames={"002_table.sql": "002_new_table.sql"})
    assert "sv_half_applied" in found["classes"]

    found = replica.failing(database, renamed)  # without a word of the rename
    assert "sv_half_applied" in found["classes"]
    assert found["error"].startswith("'002_new_table.sql' begins as '002_table.sql' does, which stopped behind 2 ")
    assert found["status"]["filenames"] == [] and logged(database)["002", 1] == 1

    status = coordinator(database, write(directory, FILES)).run()
    assert status.filenames == ["002_table.sql", "003_table.sql", "004_table.sql"]
    assert_all_once(database)
    assert replica.migrate(database, directory)["fast_path"]


def test_r_runs_the_file_that_python_was_killed_before_and_python_sees_no_drift(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with python(database, directory, at=lambda step: step.kind == "started" and step.number == 3) as killed:
        killed.send("go")
        killed.receive()
        killed.kill()
    wait_free(database.server)
    assert replica.migrate(database, directory)["filenames"] == ["002_table.sql", "003_table.sql", "004_table.sql"]
    status = coordinator(database, directory).run()
    assert status.fast_path and status.drifted == [] and status.state == "up_to_date"
    assert_all_once(database)


def test_nobody_takes_the_lock_where_nothing_is_pending(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    coordinator(database, directory).run()
    with database.server.log() as log:
        status = replica.migrate(database, directory)
        asked = log.statements()
    assert status["fast_path"] and not status["lock_acquired"] and status["lock_name"] is None
    assert not [text for text in asked if "LOCK" in text or "CREATE" in text] and len(asked) == 5


@pytest.mark.parametrize("timeout", [0, 0.2, 1])
def test_lock_timeout_names_the_holder_and_runs_nothing(
    database: Database, tmp_path: Path, replica: Replica, timeout: float
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with database.connect() as connection, connection.cursor() as cursor:
        take_lock(cursor, LOCK)
        found = replica.failing(database, directory, timeout=timeout)
        waited = f"gave up after {timeout:g} s; allow a longer timeout, or look for a holder that hangs"
        hint = waited if timeout else "not waiting; try again later, or set a timeout"
        assert "sv_lock_timeout" in found["classes"]
        assert f"lock '{LOCK}' is held by connection {connection.thread_id()} (root from " in found["error"]
        assert f": {hint}" in found["error"]
        status = found["status"]
        assert status["lock_holder"]["connection_id"] == connection.thread_id() and "doing" not in status["lock_holder"]
        assert status["pending"] == list(FILES) and not status["lock_acquired"] and status["newly_applied"] == 0
    assert not database.query("SHOW TABLES")


def test_wait_for_ever_is_a_wait(database: Database, tmp_path: Path, replica: Replica) -> None:
    # MariaDB answers NULL at once to a negative wait.
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};"})
    with database.connect() as connection, connection.cursor() as cursor:
        take_lock(cursor, LOCK)
        replica.send(database, directory, timeout="Inf")
        wait_until(lambda: bool(waiting_for(database.server, LOCK)), "R to wait")
        assert not recorded(database)
        cursor.execute(f"SELECT RELEASE_LOCK('{LOCK}')")
        assert replica.receive()["status"]["newly_applied"] == 1


def test_killed_wait_is_an_error_and_no_lock(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    with database.connect() as connection, connection.cursor() as cursor:
        take_lock(cursor, LOCK)
        replica.send(database, directory)
        wait_until(lambda: bool(waiting_for(database.server, LOCK)), "R to wait")
        cursor.execute(f"KILL QUERY {waiting_for(database.server, LOCK)[0]}")
        found = replica.receive()
    assert "sv_lock_error" in found["classes"] and "the wait was killed" in found["error"]
    assert not database.query("SHOW TABLES") and found["open"] == 0
