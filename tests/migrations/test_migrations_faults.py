"""Servers that kill connections or restart, links that break: the error is true, and the next run resumes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from support.link import Link
from support.migrations.dying import PLAIN, Killer, Refused, die_at_step, uninterrupted
from support.migrations.scenes import (
    LOG,
    coordinating,
    coordinator,
    is_statement,
    migrate,
    recorded,
    scene,
    sessions,
    steps,
    url,
    wait_ended,
    write,
)
from support.processes import wait_until
from support.servers import Database, Server

import sharedvol.database.connection
from sharedvol.errors import DatabaseError, HalfAppliedError, LockLostError, SharedVolError
from sharedvol.migrations import MigrationCoordinator, MigrationFailed, MigrationStatus

METADATA = "Waiting for table metadata lock"


def note(step: int) -> str:
    return f"INSERT INTO log VALUES ('f', {step}, NULL);\n"


FILES = {
    "1.sql": f"{LOG};\nCREATE TABLE big (id INT PRIMARY KEY);\nINSERT INTO big VALUES (1);\n",
    "2.sql": f"{note(1)}ALTER TABLE big ADD n INT;\n{note(3)}START TRANSACTION;\n{note(5)}{note(6)}COMMIT;\n{note(8)}",
    "3.sql": note(9),
}
STEPS = [1, 3, 5, 6, 8, 9]


def holder(database: Database) -> int:
    """The session of the migrating process, the only one but ours."""
    ((session, _),) = sessions(database)
    return session


def assert_truthful(status: MigrationStatus, database: Database) -> None:
    """What a failed run says of itself is so."""
    assert status.state == "failed" and status.error and not status.ready
    assert set(status.filenames) <= set(recorded(database)) and status.newly_applied == len(status.filenames)
    assert not set(status.pending) & set(status.filenames)


def go_on(database: Database, directory: Path, **options: Any) -> MigrationStatus:
    """The next run: it ends as the first one should have."""
    status = migrate(database, directory, **options)
    assert steps(database) == STEPS and recorded(database) == dict.fromkeys(FILES, 1)
    return status


@pytest.mark.parametrize("number", range(1, 9))
def test_connection_killed_between_statements_loses_nothing(database: Database, tmp_path: Path, number: int) -> None:
    directory = write(tmp_path / "sql", FILES)
    with coordinating(database, directory, at=is_statement("2.sql", number)) as (child, _):
        database.server.query(f"KILL {holder(database)}")
        wait_ended(database)
        child.send("continue")
        status = child.receive()
    assert_truthful(status, database)
    assert status.filenames == ["1.sql"] and "2.sql" in str(status.error)
    assert go_on(database, directory).filenames == ["2.sql", "3.sql"]


@pytest.mark.parametrize("how", ["KILL", "KILL QUERY"])
def test_alter_that_the_server_kills_is_gone_on_with_or_refused(database: Database, tmp_path: Path, how: str) -> None:
    directory = write(tmp_path / "sql", FILES)
    with closing(database.connect(autocommit=False)) as reader, reader.cursor() as cursor:
        with coordinating(database, directory, at=is_statement("2.sql", 2)) as (child, _):
            cursor.execute("SELECT * FROM big")
            child.send("continue")
            wait_until(lambda: METADATA in [state for _, state in sessions(database)], "the ALTER to wait")
            ((altering,),) = [(session,) for session, state in sessions(database) if state == METADATA]
            database.server.query(f"{how} {altering}")
            status = child.receive()
        cursor.execute("ROLLBACK")
    wait_ended(database)
    assert_truthful(status, database)
    assert steps(database) == [1] and "2.sql" in str(status.error)
    try:
        go_on(database, directory)
    except HalfAppliedError as error:
        assert how == "KILL" and "statement 2 (line 2, ALTER TABLE big)" in str(error)
        go_on(database, directory, resume_at={"2.sql": 2})


@pytest.mark.parametrize("how", ["KILL", "KILL QUERY"])
@pytest.mark.parametrize("engine", ["InnoDB", "MyISAM"])
def test_insert_that_the_server_kills_is_undone_and_run_again_or_refused(
    database: Database, tmp_path: Path, how: str, engine: str
) -> None:
    database.query(f"CREATE TABLE many (id INT) ENGINE={engine}")
    files = {
        "1.sql": f"{LOG};\n",
        "2.sql": f"{note(1)}INSERT INTO many SELECT 1 UNION ALL SELECT SLEEP(300);\n{note(3)}",
    }
    directory = write(tmp_path / "sql", files)
    with coordinating(database, directory, at=is_statement("2.sql", 2)) as (child, _):
        session = holder(database)
        child.send("continue")
        wait_until(lambda: "sleep" in sessions(database)[0][1].lower(), "the INSERT to run")
        database.server.query(f"{how} {session}")
        status = child.receive()
    wait_ended(database)
    assert status.filenames == ["1.sql"] and "statement 2" in str(status.error)
    written = len(database.query("SELECT * FROM many"))
    assert written == 0 or engine == "MyISAM"
    write(directory, {**files, "2.sql": files["2.sql"].replace("300", "0")})
    try:
        migrate(database, directory)
    except HalfAppliedError:
        assert engine == "MyISAM" and len(database.query("SELECT * FROM many")) == written
    else:
        assert engine == "InnoDB" and len(database.query("SELECT * FROM many")) == 2


def test_transaction_with_a_table_that_cannot_undo_is_not_begun_again(database: Database, tmp_path: Path) -> None:
    files = {
        "1.sql": f"{LOG};\nCREATE TABLE plain (id INT) ENGINE=MyISAM;\n",
        "2.sql": "START TRANSACTION;\nINSERT INTO plain VALUES (1);\nINSERT INTO plain VALUES (2);\nCOMMIT;\n",
    }
    directory = write(tmp_path / "sql", files)
    with coordinating(database, directory, at=is_statement("2.sql", 3)) as (child, _):
        child.kill()
    wait_ended(database)
    for _ in range(2):
        with pytest.raises(HalfAppliedError, match="engine cannot undo it"):
            coordinator(database, directory).run()
        assert database.query("SELECT id FROM plain") == [(1,)]


def test_mark_that_cannot_be_written_is_no_failure_of_its_statement(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"1.sql": "CREATE TABLE a (id INT);\n"})
    migrate(database, directory)
    database.query(
        "CREATE TRIGGER full BEFORE UPDATE ON sharedvol_migration FOR EACH ROW "
        "IF NEW.done = 2 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no space'; END IF"
    )
    write(directory, {"1.sql": "CREATE TABLE a (id INT);\n", "2.sql": "DO 1;\nCREATE TABLE b (id INT);\nDO 3;\n"})
    with pytest.raises(SharedVolError, match=r"2\.sql: statement 2 is done, but this .* no space"):
        coordinator(database, directory).run()
    database.query("DROP TRIGGER full")
    with pytest.raises(HalfAppliedError, match="statement 2 was begun"):
        coordinator(database, directory).run()
    assert migrate(database, directory, resume_at={"2.sql": 3}).filenames == ["2.sql"]


@pytest.mark.parametrize("end", [Server.kill, Server.stop])
def test_server_that_ends_and_comes_back_is_gone_on_with(
    private_server: Server, tmp_path: Path, end: Callable[[Server], None]
) -> None:
    database = Database(private_server, private_server.create_database())
    directory = write(tmp_path / "sql", FILES)
    with coordinating(database, directory, at=is_statement("2.sql", 6)) as (child, _):
        end(private_server)
        child.send("continue")
        status = child.receive()
        assert status.state == "failed" and status.filenames == ["1.sql"] and status.error
        with pytest.raises(DatabaseError, match="cannot connect"):
            coordinator(database, directory).run()
        private_server.start()
    go_on(database, directory)


# A link that drops: the packet was executed and its answer is lost, or it never arrived.

PLACES = {
    "request for the lock": b"GET_LOCK",
    "ledger's table": b"CREATE TABLE IF NOT EXISTS",
    "row for the marks": b"INSERT INTO `{}`.sharedvol_migration",
    "ALTER": b"ALTER TABLE big",
    "INSERT": b"VALUES ('f', 3,",
    "INSERT in a transaction": b"VALUES ('f', 6,",
    "COMMIT": b"\n;COMMIT\n;",
    "ledger's row": b"INSERT INTO `{}`.schema_version",
}


@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_link_that_drops_is_an_error_and_the_next_run_goes_on(
    database: Database, tmp_path: Path, place: str, delivered: bool
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with Link(database.server) as link:
        made = MigrationCoordinator(f"{link.url(database.name)}&ssl_disabled=1", directory)
        link.drop_on(PLACES[place].replace(b"{}", database.name.encode()), delivered=delivered)
        with pytest.raises((MigrationFailed, DatabaseError, LockLostError)) as caught:
            made.run()
    wait_ended(database)
    status = made.current
    assert re.search("lost|gone|reset", str(caught.value), re.IGNORECASE)
    assert status.state == "failed" and set(status.filenames) <= set(recorded(database))
    assert_truthful(status, database)
    go_on(database, directory)


@pytest.mark.parametrize("delivered", [True, False])
def test_link_that_drops_when_all_is_recorded_does_no_harm(
    database: Database, tmp_path: Path, delivered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with Link(database.server) as link:
        made = MigrationCoordinator(f"{link.url(database.name)}&ssl_disabled=1", directory)
        link.drop_on(b"RELEASE_LOCK", delivered=delivered)
        status = made.run()
    assert status.ready and status.filenames == list(FILES)
    assert "was lost with its connection" in caplog.text
    assert recorded(database) == dict.fromkeys(FILES, 1)


def test_no_connection_is_made_under_the_lock(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    with Link(database.server) as link:
        made = MigrationCoordinator(f"{link.url(database.name)}&ssl_disabled=1", directory)
        with database.server.log() as log:
            link.drop_on(b"ALTER TABLE big", delivered=False)
            with pytest.raises(MigrationFailed):
                made.run()
            seen = [entry for entry in log.entries() if entry.command == "Connect" and database.name in entry.text]
            assert len(seen) == 1
    go_on(database, directory)


# A connection that does not take several statements in one packet: kills may be refused, and do no harm.


def one_statement_in_a_packet() -> None:
    sharedvol.database.connection._FLAGS_AT_CONNECT = ()  # type: ignore[assignment]


def test_engine_of_ones_own_works_statement_by_statement(server: Server, tmp_path: Path) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    with scene(server, tmp_path / "sql", PLAIN) as alive, server.log() as log:
        engine = create_engine(url(alive.database))
        assert MigrationCoordinator(engine, alive.directory).run().newly_applied == len(PLAIN)
        engine.dispose()
        assert not [text for text in log.statements() if "\n;" in text]
        assert alive.picture() == picture


@pytest.mark.parametrize("phase", range(4))
def test_kill_between_a_statement_and_its_marks_is_gone_on_with_or_refused(
    server: Server, tmp_path: Path, phase: int
) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    kills = refused = 0
    for number in range(60 + 60 * phase, 10_000, 240):
        with scene(server, tmp_path / "sql", PLAIN) as alive:
            killer = Killer(alive, one_statement_in_a_packet)
            if not killer.killed(die_at_step(number)):
                break
            kills += 1
            try:
                killer.finish(picture)
            except Refused as refusal:
                refused += 1
                killer.look()
                assert refusal.where[0] not in recorded(alive.database)
    assert kills > 2 and refused < kills
