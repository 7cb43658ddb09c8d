"""However many replicas start at the same moment: each file is applied once, and all of them end ready."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from support.migrations.scenes import (
    LOG,
    coordinating,
    coordinator,
    failing,
    is_statement,
    is_waiting,
    lock_of,
    logged,
    migrate,
    numbered,
    recorded,
    sessions,
    url,
    write,
)
from support.processes import Child, wait_until
from support.servers import Database, Server

from sharedvol.errors import LockTimeout
from sharedvol.migrations import MigrationCoordinator, MigrationStatus
from sharedvol.migrations.status import Step

R_LOCK = "sysndd_migration"
R_LEDGER = (
    "CREATE TABLE IF NOT EXISTS schema_version (filename VARCHAR(255) PRIMARY KEY, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
)
FILES = numbered(5)


def released_together(database: Database, directory: Path, processes: int) -> list[MigrationStatus]:
    """What each of so many replicas ended with, which began at one moment."""

    def work(connection: Connection) -> None:
        made = coordinator(database, directory)
        connection.send("here")
        connection.recv()
        connection.send(made.run())

    with ExitStack() as stack:
        children = [stack.enter_context(Child(work)) for _ in range(processes)]
        for child in children:
            assert child.receive() == "here"
        for child in children:
            child.send("go")
        return [child.receive() for child in children]


def assert_all_once(database: Database) -> None:
    assert recorded(database) == dict.fromkeys(FILES, 1)
    assert set(logged(database).values()) == {1} and len(logged(database)) == 2 * (len(FILES) - 1)


@pytest.mark.parametrize("processes", [8, 32])
def test_each_file_is_applied_by_exactly_one_of_many(database: Database, tmp_path: Path, processes: int) -> None:
    statuses = released_together(database, write(tmp_path / "sql", FILES), processes)
    assert all(status.ready and status.pending_migrations == 0 for status in statuses)
    assert Counter(status.newly_applied for status in statuses) == {len(FILES): 1, 0: processes - 1}
    assert all(status.fast_path or status.lock_acquired for status in statuses)
    assert_all_once(database)


@pytest.mark.parametrize("processes", [8, 32])
def test_nobody_takes_the_lock_where_the_schema_is_current(database: Database, tmp_path: Path, processes: int) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    with lock_of(database):  # a run that took it would wait
        statuses = released_together(database, directory, processes)
    assert all(status.ready and status.fast_path and not status.lock_acquired for status in statuses)
    assert_all_once(database)


def test_new_files_are_applied_once_by_many_on_an_older_schema(database: Database, tmp_path: Path) -> None:
    directory = tmp_path / "sql"
    migrate(database, write(directory, dict(list(FILES.items())[:3])))
    statuses = released_together(database, write(directory, FILES), 8)
    assert Counter(status.newly_applied for status in statuses) == {len(FILES) - 3: 1, 0: 7}
    assert_all_once(database)


def test_waiter_finds_nothing_left_to_do(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with (
        coordinating(database, directory, at=is_statement("002_table.sql", 2)) as (worker, _),
        coordinating(database, directory, at=is_waiting) as (waiter, step),
    ):
        holder = lock_of(database).holder()
        assert holder is not None and f"connection {holder.connection_id} " in step.detail
        waiter.send("continue")
        worker.send("continue")
        done, idle = worker.receive(), waiter.receive()
    assert (done.newly_applied, idle.newly_applied) == (len(FILES), 0)
    assert idle.ready and idle.lock_acquired and not idle.fast_path and idle.waited > 0
    assert_all_once(database)


def test_coordinator_finds_done_what_an_r_replica_did_on_another_connection(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with closing(database.connect()) as lock, lock.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 30)", (R_LOCK,))
        with coordinating(database, directory, at=is_waiting, lock_name=R_LOCK) as (ours, step):
            assert f"connection {lock.thread_id()} " in step.detail
            ours.send("continue")
            database.query(R_LEDGER)
            for name, text in FILES.items():
                for statement in text.split(";\n")[:-1]:
                    database.query(statement)
                database.query(f"INSERT INTO schema_version (filename, success) VALUES ('{name}', TRUE)")
            assert not database.query("SHOW TABLES LIKE 'sharedvol%'")  # nothing was touched while we waited
            cursor.execute("SELECT RELEASE_LOCK(%s)", (R_LOCK,))
            status = ours.receive()
    assert status.ready and status.newly_applied == 0 and status.filenames == [] and status.lock_acquired
    assert_all_once(database)


def test_coordinator_goes_on_behind_an_r_replica_that_stopped_half_way(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with closing(database.connect()) as lock, lock.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 30)", (R_LOCK,))
        with coordinating(database, directory, at=is_waiting, lock_name=R_LOCK) as (ours, _):
            ours.send("continue")
            database.query(R_LEDGER)
            database.query(LOG)
            database.query("INSERT INTO schema_version (filename) VALUES ('000_log.sql')")
            cursor.execute("SELECT RELEASE_LOCK(%s)", (R_LOCK,))
            status = ours.receive()
    assert status.ready and status.newly_applied == len(FILES) - 1
    assert_all_once(database)


def test_r_replica_waits_while_we_migrate(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with (
        coordinating(database, directory, at=is_statement("003_table.sql", 3), lock_name=R_LOCK) as (ours, _),
        closing(database.connect()) as lock,
        lock.cursor() as cursor,
    ):
        cursor.execute("SELECT GET_LOCK(%s, 0)", (R_LOCK,))
        assert cursor.fetchone() == (0,)
        ours.send("continue")
        cursor.execute("SELECT GET_LOCK(%s, 30)", (R_LOCK,))
        assert cursor.fetchone() == (1,)
        assert recorded(database) == dict.fromkeys(FILES, 1)  # what R reads again, with the lock
        assert ours.receive().ready


@pytest.mark.parametrize("timeout", [0, 0.2, 1])
def test_lock_timeout_names_the_holder_and_runs_nothing(database: Database, tmp_path: Path, timeout: float) -> None:
    directory = write(tmp_path / "sql", FILES)
    with lock_of(database) as lock:
        holder = lock.holder()
        assert holder is not None
        error, current = failing(database, directory, lock_timeout=timeout)
        assert isinstance(error, LockTimeout)
        for told in (str(error), current.error or ""):
            assert f"connection {holder.connection_id} (root from " in told and str(lock.name) in told
        seen = coordinator(database, directory).status()
        for status in (current, seen):
            assert status.lock_holder is not None and status.lock_holder["connection_id"] == holder.connection_id
            assert status.pending == list(FILES) and status.pending_migrations == len(FILES)
            assert status.lock_name == lock.name and not status.lock_acquired and not status.ready
        assert (current.newly_applied, current.filenames) == (0, [])
        assert seen.state == "pending" and seen.error is None
    assert not database.query("SHOW TABLES")
    assert migrate(database, directory).newly_applied == len(FILES)


def test_status_of_a_waiter_says_whom_it_waits_for(database: Database, tmp_path: Path) -> None:
    seen: list[MigrationStatus] = []
    made = coordinator(
        database, write(tmp_path / "sql", FILES), lock_timeout=0.2, observer=lambda _: seen.append(made.current)
    )
    with lock_of(database) as lock, pytest.raises(LockTimeout):
        holder = lock.holder()
        made.run()
    assert holder is not None and {status.state for status in seen} == {"waiting"}
    for status in seen:
        assert status.lock_holder is not None and not status.ready
        assert status.lock_holder["connection_id"] == holder.connection_id
        assert f"connection {holder.connection_id} (root from " in (status.activity or "")


def test_schemas_on_one_server_do_not_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    first, second = Database(server, server.create_database()), Database(server, server.create_database())
    directory = write(tmp_path / "sql", FILES)
    try:
        with coordinating(first, directory, at=is_statement("001_table.sql", 2)) as (worker, _):
            assert migrate(second, directory, lock_timeout=0).newly_applied == len(FILES)
            assert recorded(first) == {"000_log.sql": 1}
            worker.send("continue")
            assert worker.receive().newly_applied == len(FILES)
        for one in (first, second):
            assert_all_once(one)
    finally:
        first.drop()
        second.drop()


def test_schemas_with_one_literal_name_do_wait(server: Server, tmp_path: Path) -> None:
    first, second = Database(server, server.create_database()), Database(server, server.create_database())
    directory = write(tmp_path / "sql", FILES)
    try:
        with coordinating(first, directory, at=is_statement("001_table.sql", 2), lock_name=R_LOCK) as (worker, _):
            error, _ = failing(second, directory, lock_name=R_LOCK, lock_timeout=0)
            assert isinstance(error, LockTimeout) and not second.query("SHOW TABLES")
            worker.send("continue")
            assert worker.receive().ready
        wait_until(lambda: not sessions(first), "the lock")
        assert migrate(second, directory, lock_name=R_LOCK).newly_applied == len(FILES)
    finally:
        first.drop()
        second.drop()


def test_connection_of_somebody_else_is_refused(database: Database, tmp_path: Path) -> None:
    # In its transaction the look with the lock would show the ledger as it was before the lock.
    engine = create_engine(url(database))
    with engine.connect() as connection, pytest.raises(TypeError, match="give the URL or the Engine"):
        MigrationCoordinator(connection, tmp_path)
    engine.dispose()


def test_engine_whose_sessions_keep_snapshots_looks_again_with_the_lock(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    engine = create_engine(url(database), isolation_level="REPEATABLE READ")
    with coordinating(database, directory, at=is_statement("003_table.sql", 3)) as (worker, _):

        def let_go(step: Step) -> None:
            if step.kind == "waiting" and not done:
                worker.send("continue")
                done.append(worker.receive())

        done: list[MigrationStatus] = []
        status = MigrationCoordinator(engine, directory, observer=let_go).run()
    assert done[0].newly_applied == len(FILES) and status.newly_applied == 0 and status.lock_acquired
    assert_all_once(database)
    engine.dispose()
