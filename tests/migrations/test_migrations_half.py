"""Migrations that stopped half-way are reported to the statement, and resumed exactly there or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.migrations.scenes import LOG, coordinator, failing, migrate, recorded, steps, write
from support.servers import Database

from sharedvol.errors import HalfAppliedError
from sharedvol.migrations.status import HalfApplied, MigrationFailed

SECRET = "s3cret"


def note(step: int) -> str:
    return f"INSERT INTO log VALUES ('f', {step}, '{SECRET}');\n"


def broken(before: str, line: str = "INSERT INTO missing VALUES ('s3cret');\n", behind: str = "") -> dict[str, str]:
    """A file that fails, between two that do not."""
    return {"001.sql": f"{LOG};\n", "002.sql": before + line + behind, "003.sql": note(9)}


def stop(database: Database, directory: Path, files: Mapping[str, str]) -> HalfApplied:
    """Run files of which the second fails. Return how far it got."""
    error, current = failing(database, write(directory, files))
    assert isinstance(error, MigrationFailed) and error.status == replace(current, error=error.status.error)
    ((half),) = current.half_applied
    assert coordinator(database, directory).status().half_applied == [half]
    assert half.name == "002.sql" and "002.sql" not in recorded(database)
    assert current.filenames == ["001.sql"] and current.newly_applied == 1
    assert current.pending == ["002.sql", "003.sql"] and current.pending_migrations == 2
    return half


def refused(database: Database, directory: Path, files: Mapping[str, str], **options: object) -> str:
    """What a run says that is refused and does nothing."""
    before = steps(database), recorded(database)
    error, current = failing(database, write(directory, files), **options)
    assert isinstance(error, HalfAppliedError), error
    assert (steps(database), recorded(database)) == before
    assert current.newly_applied == 0 and current.pending == ["002.sql", "003.sql"]
    return str(error)


def test_failure_names_file_statement_and_line_and_no_values(database: Database, tmp_path: Path) -> None:
    files = broken(f"{note(1)}-- why\n{note(2)}")
    half = stop(database, tmp_path / "sql", files)
    assert (half.statements, half.done, half.next, half.line) == (3, 2, 3, 4)
    assert half.words == "INSERT INTO missing" and half.obstacle is None
    error, _ = failing(database, tmp_path / "sql")
    for part in (
        "002.sql: statement 3 of 3",
        "line 4",
        "INSERT INTO missing",
        "missing' doesn't exist",
        "(error 1146)",
    ):
        assert part in str(error)
    told = coordinator(database, tmp_path / "sql").status().as_dict()
    assert SECRET not in f"{error} {told} {database.query('SELECT error, digests FROM sharedvol_migration')}"
    assert steps(database) == [1, 2]


def test_mended_file_goes_on_at_the_very_statement(database: Database, tmp_path: Path) -> None:
    before = note(1) + "CREATE TABLE once (id INT);\n" + note(2)
    stop(database, tmp_path / "sql", broken(before, behind=note(4)))
    files = broken(before, note(3), note(4) + note(5))
    status = migrate(database, write(tmp_path / "sql", files))
    assert status.filenames == ["002.sql", "003.sql"] and steps(database) == [1, 2, 3, 4, 5, 9]
    assert status.half_applied == []
    assert migrate(database, tmp_path / "sql").drifted == []  # the fixed text is the one that was applied


def test_file_that_fails_again_and_again_does_nothing_twice(database: Database, tmp_path: Path) -> None:
    files = broken(note(1) + note(2), behind=note(3))
    stop(database, tmp_path / "sql", files)
    for _ in range(3):
        error, current = failing(database, tmp_path / "sql")
        assert "statement 3 of 4" in str(error) and current.newly_applied == 0
    assert steps(database) == [1, 2]
    database.query("CREATE TABLE missing (note TEXT)")
    migrate(database, tmp_path / "sql")
    assert steps(database) == [1, 2, 3, 9]


@pytest.mark.parametrize("change", ["another text", "one more", "one less", "another order"])
def test_change_of_what_has_been_run_is_refused(database: Database, tmp_path: Path, change: str) -> None:
    stop(database, tmp_path / "sql", broken(note(1) + note(2)))
    changed = {
        "another text": note(1) + note(3),
        "one more": note(0) + note(1) + note(2),
        "one less": note(2),
        "another order": note(2) + note(1),
    }[change]
    told = refused(database, tmp_path / "sql", broken(changed, note(7)))
    assert "002.sql" in told and "are others now" in told and "--resume-at 002.sql:" in told


def test_comments_and_line_ends_of_what_has_been_run_may_change(database: Database, tmp_path: Path) -> None:
    stop(database, tmp_path / "sql", broken(note(1) + note(2)))
    changed = f"-- better\n{note(1)}\n\n/* told */ {note(2)}".replace("\n", "\r\n")
    migrate(database, write(tmp_path / "sql", broken(changed, note(3))))
    assert steps(database) == [1, 2, 3, 9]


def test_error_in_the_second_result_of_a_call_is_a_failure_and_refused_from_then_on(
    database: Database, tmp_path: Path
) -> None:
    body = "BEGIN INSERT INTO log VALUES ('f', 1, NULL); SELECT 1; INSERT INTO missing VALUES (1); END"
    files = broken(f"DELIMITER //\nCREATE PROCEDURE work() {body}//\n", "CALL work()//\n", f"DELIMITER ;\n{note(2)}")
    half = stop(database, tmp_path / "sql", files)
    assert (half.done, half.next, half.words) == (1, 2, "CALL work") and half.obstacle
    assert "it is not known whether it was done" in half.obstacle and "missing" in str(half.error)
    assert "statement 2 was begun" in refused(database, tmp_path / "sql", files)
    assert steps(database) == [1]
    database.query("CREATE TABLE missing (id INT)")
    migrate(database, tmp_path / "sql", resume_at={"002.sql": 3})
    assert steps(database) == [1, 2, 9]


def test_failure_within_a_transaction_goes_on_at_its_start(database: Database, tmp_path: Path) -> None:
    before = note(1) + "START TRANSACTION;\n" + note(2) + note(3)
    half = stop(database, tmp_path / "sql", broken(before, behind="COMMIT;\n"))
    assert (half.done, half.next, half.words) == (1, 2, "START TRANSACTION") and half.obstacle is None
    assert steps(database) == [1]
    migrate(database, write(tmp_path / "sql", broken(before, note(4), "COMMIT;\n")))
    assert steps(database) == [1, 2, 3, 4, 9]


def test_failure_within_autocommit_off_goes_on_at_its_start(database: Database, tmp_path: Path) -> None:
    before = note(1) + "SET autocommit = 0;\n" + note(2) + "COMMIT;\n" + note(3)
    half = stop(database, tmp_path / "sql", broken(before, behind="COMMIT;\n"))
    assert half.done <= 4 and half.error and half.obstacle is None
    assert steps(database) == [1, 2]
    migrate(database, write(tmp_path / "sql", broken(before, note(4), "COMMIT;\n")))
    assert steps(database) == [1, 2, 3, 4, 9]


def test_ddl_that_fails_while_autocommit_is_off_is_known_to_have_failed(database: Database, tmp_path: Path) -> None:
    before = f"SET autocommit = 0;\n{note(1)}"
    half = stop(database, tmp_path / "sql", broken(before, "ALTER TABLE missing ADD n INT;\n", "COMMIT;\n"))
    assert (half.done, half.next) == (2, 3) and half.obstacle is None and "missing" in str(half.error)
    assert steps(database) == [1]
    migrate(database, write(tmp_path / "sql", broken(before, note(2), "COMMIT;\n")))
    assert steps(database) == [1, 2, 9]


NEEDS_THE_SESSION = {
    "temporary table": ("CREATE TEMPORARY TABLE work (id INT);\n", "INSERT INTO work VALUES (1);\n"),
    "variable": ("SELECT COUNT(*) INTO @n FROM log;\n", "INSERT INTO log VALUES ('f', @n, NULL);\n"),
    "variable set again from another": (
        "SELECT COUNT(*) INTO @n FROM log;\nSET @m = @n + 1;\n",
        "INSERT INTO log VALUES ('f', @m, NULL);\n",
    ),
    "prepared statement": ("PREPARE work FROM 'DO 1';\n", "EXECUTE work;\n"),
    "last id": (
        "CREATE TABLE k (id INT AUTO_INCREMENT PRIMARY KEY);\nINSERT INTO k VALUES ();\n",
        "INSERT INTO log VALUES ('f', LAST_INSERT_ID(), NULL);\n",
    ),
}


@pytest.mark.parametrize("what", NEEDS_THE_SESSION)
def test_what_only_the_earlier_session_had_is_refused(database: Database, tmp_path: Path, what: str) -> None:
    made, used = NEEDS_THE_SESSION[what]
    half = stop(database, tmp_path / "sql", broken(made, behind=used))
    assert half.obstacle
    told = refused(database, tmp_path / "sql", broken(made, note(1), used))
    assert half.obstacle in told and "--half-applied rerun" in told


def test_half_of_a_statement_in_a_table_without_transactions_is_refused(database: Database, tmp_path: Path) -> None:
    before = "CREATE TABLE plain (id INT PRIMARY KEY) ENGINE=MyISAM;\nINSERT INTO plain VALUES (1);\n"
    half = stop(database, tmp_path / "sql", broken(before, "INSERT INTO plain VALUES (2), (1);\n"))
    assert database.query("SELECT id FROM plain ORDER BY id") == [(1,), (2,)]  # so it cannot be run again
    assert half.obstacle and half.done == 2
    refused(database, tmp_path / "sql", broken(before, note(1)))


def test_option_refuses_what_could_be_gone_on_with(database: Database, tmp_path: Path) -> None:
    stop(database, tmp_path / "sql", broken(note(1)))
    files = broken(note(1), note(2))
    told = refused(database, tmp_path / "sql", files, half_applied="refuse")
    assert "1 of 2 statements are done, statement 2 (line 2, INSERT INTO log) is next" in told
    migrate(database, tmp_path / "sql")
    assert steps(database) == [1, 2, 9]


def test_option_runs_the_whole_file_again(database: Database, tmp_path: Path) -> None:
    stop(database, tmp_path / "sql", broken("CREATE TEMPORARY TABLE work (id INT);\n" + note(1)))
    migrate(database, write(tmp_path / "sql", broken(note(1), note(2))), half_applied="rerun")
    assert steps(database) == [1, 1, 2, 9]


@pytest.mark.parametrize(("at", "expected"), [(1, [1, 1, 2, 3, 9]), (2, [1, 2, 3, 9]), (3, [1, 3, 9]), (4, [1, 9])])
def test_person_chooses_where_it_goes_on(database: Database, tmp_path: Path, at: int, expected: list[int]) -> None:
    stop(database, tmp_path / "sql", broken(note(1)))
    directory = write(tmp_path / "sql", broken(note(1), note(2), note(3)))
    migrate(database, directory, resume_at={"002.sql": at})
    assert steps(database) == expected


@pytest.mark.parametrize("at", [0, 5, -1])
def test_person_cannot_choose_a_statement_that_is_not_there(database: Database, tmp_path: Path, at: int) -> None:
    stop(database, tmp_path / "sql", broken(note(1)))
    files = broken(note(1), note(2), note(3))
    assert "has 3 statements" in refused(database, tmp_path / "sql", files, resume_at={"002.sql": at})


def test_settings_are_made_again_before_it_goes_on(database: Database, tmp_path: Path) -> None:
    tables = (
        "CREATE TABLE city (id INT PRIMARY KEY);\nCREATE TABLE man (c INT, FOREIGN KEY (c) REFERENCES city (id));\n"
    )
    before = tables + "SET foreign_key_checks = 0;\nSET @city = 7;\nSET SESSION sql_mode = 'ANSI_QUOTES';\n"
    stop(database, tmp_path / "sql", broken(before))
    migrate(database, write(tmp_path / "sql", broken(before, 'INSERT INTO "man" VALUES (@city);\n')))
    assert database.query("SELECT c FROM man") == [(7,)]


LEAKS = {
    "setting": ("SET foreign_key_checks = 0, group_concat_max_len = 5;\n", "@@foreign_key_checks"),
    "mode": ("SET sql_mode = '';\n", "@@sql_mode <> ''"),
    "character set": ("SET NAMES latin1;\n", "@@character_set_client = 'utf8mb4'"),
    "schema": ("USE information_schema;\n", "DATABASE() <> 'information_schema'"),
    "transaction": ("START TRANSACTION;\nINSERT INTO log VALUES ('f', 1, NULL);\n", "@@autocommit"),
    "autocommit": ("SET autocommit = 0;\nINSERT INTO log VALUES ('f', 1, NULL);\n", "@@autocommit"),
    "lock": ("LOCK TABLES log READ;\n", "@@autocommit"),
    "isolation": (
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE;\n",
        "{isolation} <> 'SERIALIZABLE'",
    ),
    "variable": ("SELECT 5 INTO @n;\n", "@n IS NULL"),
    "obscure setting": ("SET div_precision_increment = 9;\n", "@@div_precision_increment = 4"),
    "clock": ("SET timestamp = 7;\n", "UNIX_TIMESTAMP() > 7"),
    "time zone": ("SET time_zone = '+05:00';\n", "@@time_zone <> '+05:00'"),
}


@pytest.mark.parametrize("what", LEAKS)
def test_nothing_of_a_file_reaches_the_next(database: Database, tmp_path: Path, what: str) -> None:
    left, seen = LEAKS[what]
    isolation = "@@transaction_isolation" if database.server.flavour == "mysql" else "@@tx_isolation"
    seen = seen.replace("{isolation}", isolation)
    files = {"001.sql": f"{LOG};\n", "002.sql": left, "003.sql": f"INSERT INTO log VALUES ('g', {seen}, NULL);\n"}
    migrate(database, write(tmp_path / "sql", files))
    rows = database.query("SELECT file, step FROM log ORDER BY file")
    assert rows == [("f", 1), ("g", 1)] if "INSERT" in left else rows == [("g", 1)]


def test_our_own_questions_are_not_seen_by_row_count(database: Database, tmp_path: Path) -> None:
    counted = "INSERT INTO log VALUES ('f', ROW_COUNT(), NULL);\n"
    made = "CREATE TABLE t (id INT) SELECT 1 AS id UNION SELECT 2 UNION SELECT 3;\n"
    own = "START TRANSACTION;\nDELETE FROM t WHERE id > 1;\n" + counted + "COMMIT;\n"
    migrate(database, write(tmp_path / "sql", {"001.sql": f"{LOG};\n", "002.sql": made + counted + own}))
    assert steps(database) == [2, 3]


def test_what_a_file_leaves_open_is_done_when_it_is_recorded(database: Database, tmp_path: Path) -> None:
    files = {"001.sql": f"{LOG};\n", "002.sql": f"START TRANSACTION;\n{note(1)}"}
    migrate(database, write(tmp_path / "sql", files))
    assert steps(database) == [1]


def test_a_file_whose_statements_are_all_done_has_no_next_one() -> None:
    half = HalfApplied("002.sql", statements=1, done=1, next=2, line=0, words="", error=None, obstacle=None)
    assert str(half) == "002.sql: all 1 statements are done; it is not recorded as applied yet"
