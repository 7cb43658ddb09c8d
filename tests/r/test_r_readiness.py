"""R answers a health check as Python does: the same code, reason and fields."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.named import take_lock
from support.r.rmigrations import LOCK, LOG, Replica, coordinator, note, numbered, run, write
from support.servers import Database

from sharedvol.errors import SharedVolError
from sharedvol.health import Health

FILES = numbered(2)


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    """An R replica, to migrate one database after the other."""
    with Replica() as made:
        yield made


def in_python(database: Database, directory: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    """What a Python replica answers after its own run."""
    made = coordinator(database, directory, **options)
    with suppress(SharedVolError):
        made.run()
    report = Health(made, max_age=0, database="always").ready()
    return report.code, report.body


def test_ready_after_a_run_with_the_fields_of_python(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};"})
    replica.migrate(database, directory)
    code, body = replica.ready(database)
    assert (code, body["status"], body["database"]) == (200, "ready", "connected")
    assert "reason" not in body and "error" not in body
    assert (body["newly_applied"], body["filenames"]) == (1, ["1.sql"])  # one name is an array, too
    theirs_code, theirs = in_python(database, directory)
    assert theirs_code == 200 and set(body) == set(theirs)
    assert set(body["manifest"]) == set(theirs["manifest"])
    same = {"last_run", "timestamp", "newly_applied", "filenames", "fast_path", "lock_acquired", "lock_name", "waited"}
    assert {key: body[key] for key in set(theirs) - same} == {key: theirs[key] for key in set(theirs) - same}


def test_pending_names_the_holder_of_the_lock(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    replica.migrate(database, directory)
    write(directory, {**FILES, "9.sql": note("9", 1)})
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        take_lock(cursor, LOCK)
        code, body = replica.ready(database)
        found = coordinator(database, directory).status().as_dict()
        assert (code, body["status"], body["reason"]) == (503, "not_ready", "migrations_pending")
        assert (body["database"], body["pending"], body["state"]) == ("connected", ["9.sql"], "pending")
        assert body["lock_holder"]["connection_id"] == connection.thread_id()
        assert set(body["lock_holder"]) <= set(found["lock_holder"]) and body["lock_name"] == found["lock_name"]
        assert set(body) == {*found, "status", "reason", "database", "timestamp"}
    coordinator(database, directory).run()  # another replica does it
    assert replica.ready(database)[0] == 200


def test_ready_while_somebody_else_has_the_lock(database: Database, tmp_path: Path, replica: Replica) -> None:
    replica.migrate(database, write(tmp_path / "sql", FILES))
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        take_lock(cursor, LOCK)
        code, body = replica.ready(database)
        assert code == 200 and body["lock_holder"]["connection_id"] == connection.thread_id()


def test_failed_migration_is_told_with_its_reason(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", {**FILES, "9.sql": "CREATE NONSENSE;"})
    found = replica.failing(database, directory)
    code, body = replica.ready(database)
    assert (code, body["reason"], body["database"]) == (503, "migration_error", "connected")
    assert body["error"] == found["error"] and body["filenames"] == list(FILES) and body["pending"] == ["9.sql"]
    assert set(body) == set(in_python(database, directory)[1])


def test_lost_database_is_unavailable(database: Database, tmp_path: Path, replica: Replica) -> None:
    replica.migrate(database, write(tmp_path / "sql", FILES))
    code, body = replica.ready(database, port=1)
    assert (code, body["reason"], body["database"]) == (503, "database_unavailable", "unavailable")
    assert body["error"].startswith("cannot connect to the database: ")
    assert replica.ready(database)[0] == 200


def test_a_lost_database_takes_no_replica_out_once_nothing_is_pending(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", FILES)
    replica.migrate(database, directory)
    code, body = replica.ready(database, when="start", port=1)
    assert (code, body["status"], body["database"]) == (200, "ready", "unknown")
    theirs = Health(made := coordinator(database, directory))
    made.run()
    kept = theirs.ready()
    assert (kept.code, kept.body["database"]) == (200, "unknown")
    assert set(body) ^ set(kept.body) <= {"lock_name", "lock_holder"}
    write(directory, {**FILES, "9.sql": "CREATE NONSENSE;"})
    replica.failing(database, directory)
    assert replica.ready(database, when="start", port=1)[1]["reason"] == "database_unavailable"


def test_server_that_says_nothing_is_unavailable_when_the_time_of_the_option_file_is_over(tmp_path: Path) -> None:
    (tmp_path / "health.cnf").write_text("[client]\nconnect-timeout=1\n")
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};"})
    code = """
    connect <- function() {
      DBI::dbConnect(RMySQL::MySQL(), host = "127.0.0.1", port = as.integer(arguments[2]), default.file = arguments[3])
    }
    status <- tryCatch(sv_migrate(connect, arguments[1], "x"), sv_migration_failed = function(e) e$status)
    report <- sv_readiness(status, connect)
    cat(report$code, report$body$reason)
    """
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel accepts, nobody answers
        said = run(code, directory, str(mute.getsockname()[1]), tmp_path / "health.cnf")
    assert said == "503 database_unavailable"


def test_files_that_are_others_now_are_no_lost_database(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    replica.migrate(database, directory, expected_latest="002_table.sql", expected_min_count=3)
    write(directory, {"000_log.sql": f"{LOG};"})
    code, body = replica.ready(database)
    assert (code, body["reason"], body["database"]) == (503, "migration_error", "unknown")
    assert body["error"] == "Expected latest migration mismatch: expected 002_table.sql, found 000_log.sql"
    assert (body["manifest"]["ok"], body["manifest"]["count"]) == (False, 1)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    code, body = replica.ready(database)
    assert (code, body["reason"], body["database"]) == (503, "migration_error", "unknown")
    assert body["error"] == f"Migrations directory does not exist: {directory}"


def test_unreadable_ledger_is_no_lost_database(database: Database, tmp_path: Path, replica: Replica) -> None:
    replica.migrate(database, write(tmp_path / "sql", FILES))
    database.query("ALTER TABLE schema_version RENAME COLUMN success TO something")
    code, body = replica.ready(database)
    assert (code, body["reason"], body["database"]) == (503, "migration_error", "connected")
    assert "nothing is run" in body["error"]


def test_status_that_no_run_made_is_refused() -> None:
    code = "cat(tryCatch(sv_readiness(list(), function() stop('never asked')), error = conditionMessage))"
    assert run(code) == "status must come from sv_migrate(): what it returned, or its condition's $status"
