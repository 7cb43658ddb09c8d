"""Migrations whose names or texts have changed, or that another image or R applied."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.migrations.scenes import LOG, R_LEDGER, coordinator, failing, migrate, numbered, recorded, steps, write
from support.named import take_lock
from support.servers import Database

from sharedvol.errors import AheadError, DriftError, HalfAppliedError, LedgerError, ManifestError

FILES = numbered(2)


def note(step: int) -> str:
    return f"INSERT INTO log VALUES ('f', {step}, NULL);\n"


def renamed(files: dict[str, str], old: str, new: str) -> dict[str, str]:
    return {new if name == old else name: text for name, text in files.items()}


@pytest.mark.parametrize("new", ["001_better.sql", "001_TABLE.sql", "001_tablé.sql"])
def test_renamed_file_keeps_its_row_and_is_not_run_again(database: Database, tmp_path: Path, new: str) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    before = database.query("SELECT applied_at FROM schema_version ORDER BY filename")
    files = renamed(FILES, "001_table.sql", new)
    made = coordinator(database, write(directory, {**files, "9.sql": note(9)}), renames={"001_table.sql": new})
    assert made.plan().renames == [("001_table.sql", new)]
    status = made.run()
    assert status.filenames == ["9.sql"] and status.ready and status.drifted == []
    assert recorded(database) == dict.fromkeys([*files, "9.sql"], 1)
    assert database.query("SELECT applied_at FROM schema_version WHERE filename <> '9.sql' ORDER BY filename") == before
    assert dict(database.query("SELECT filename, applied FROM sharedvol_migration")) == recorded(database)


def test_rename_alone_is_done_and_nothing_counts_as_applied(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    files = renamed(FILES, "001_table.sql", "001_better.sql")
    status = migrate(database, write(directory, files), renames={"001_table.sql": "001_better.sql"})
    assert status.newly_applied == 0 and status.filenames == [] and recorded(database) == dict.fromkeys(files, 1)
    assert migrate(database, directory, renames={"001_table.sql": "001_better.sql"}).fast_path


def test_old_row_goes_where_the_new_one_is_there_too(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    database.query("INSERT INTO schema_version (filename) VALUES ('001_old.sql')")
    status = migrate(database, write(directory, {**FILES, "9.sql": note(9)}), renames={"001_old.sql": "001_table.sql"})
    assert status.filenames == ["9.sql"] and recorded(database) == dict.fromkeys([*FILES, "9.sql"], 1)


def test_row_of_a_rename_whose_new_file_is_not_here_stays(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    migrate(database, write(directory, {**FILES, "9.sql": note(9)}), renames={"001_table.sql": "elsewhere.sql"})
    assert recorded(database) == dict.fromkeys([*FILES, "9.sql"], 1)


def test_renamed_file_that_stopped_half_way_goes_on_there(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": f"{note(1)}SELECT nonsense;\n"})
    failing(database, directory)
    files = {"0.sql": f"{LOG};\n", "2.sql": f"{note(1)}{note(2)}"}
    made = coordinator(database, write(directory, files), renames={"1.sql": "2.sql"})
    ((half),) = made.status().half_applied
    assert (half.name, half.done) == ("2.sql", 1)
    assert made.run().filenames == ["2.sql"]
    assert steps(database) == [1, 2] and recorded(database) == dict.fromkeys(files, 1)
    assert database.query("SELECT filename FROM sharedvol_migration ORDER BY 1") == [("0.sql",), ("2.sql",)]


def test_file_that_stopped_half_way_under_another_name_is_not_begun_again(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": f"SET @n = 1;\n{note(1)}SELECT nonsense;\n"})
    failing(database, directory)
    files = {"0.sql": f"{LOG};\n", "2.sql": f"SET @n = 1;\n{note(1)}{note(2)}"}
    error, current = failing(database, write(directory, files))
    assert isinstance(error, HalfAppliedError) and "'2.sql' begins as '1.sql' does" in str(error)
    assert steps(database) == [1] and current.newly_applied == 0
    other = {"0.sql": f"{LOG};\n", "3.sql": f"SET @n = 1;\n{note(3)}"}
    assert migrate(database, write(directory, other)).filenames == ["3.sql"]
    assert migrate(database, write(directory, files), renames={"1.sql": "2.sql"}).filenames == ["2.sql"]
    assert steps(database) == [1, 2, 3]


def test_drift_is_told_or_refused(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    write(directory, {**FILES, "001_table.sql": FILES["001_table.sql"] + note(7)})
    status = migrate(database, directory)
    assert status.drifted == ["001_table.sql"] and status.fast_path and status.state == "up_to_date"
    error, current = failing(database, directory, drift="refuse")
    assert isinstance(error, DriftError) and "001_table.sql" in str(error) and current.drifted == ["001_table.sql"]
    write(directory, {name: text.replace("\n", "\r\n") for name, text in FILES.items()})
    assert migrate(database, directory, drift="refuse").drifted == []
    assert 7 not in steps(database)


def test_drift_of_what_r_applied_is_seen_from_the_next_run_on(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    database.query(R_LEDGER)
    database.query(LOG)
    database.query("INSERT INTO schema_version (filename) VALUES ('000_log.sql'), ('001_table.sql')")
    assert migrate(database, directory).filenames == ["002_table.sql"]
    assert database.query("SELECT COUNT(*) FROM sharedvol_migration WHERE applied") == [(3,)]
    write(directory, {**FILES, "001_table.sql": note(7)})
    assert migrate(database, directory).drifted == ["001_table.sql"]


def test_database_that_is_ahead_is_told_apart_or_refused(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {**FILES, "003.sql": note(3)})
    migrate(database, directory)
    write(directory, FILES)
    status = migrate(database, directory)
    assert status.state == "ahead" and status.ahead == ["003.sql"] and status.ready and status.fast_path
    error, current = failing(database, directory, ahead="refuse")
    assert isinstance(error, AheadError) and "003.sql" in str(error) and current.ahead == ["003.sql"]
    write(directory, {**FILES, "002_x.sql": note(2)})  # an image of another branch: not simply older
    error, _ = failing(database, directory, ahead="refuse")
    assert isinstance(error, AheadError) and 2 not in steps(database)
    status = migrate(database, directory)
    assert status.filenames == ["002_x.sql"] and status.state == "ahead"


def test_row_that_was_taken_out_makes_its_file_run_again(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": note(1)})
    migrate(database, directory)
    database.query("DELETE FROM schema_version WHERE filename = '1.sql'")
    assert migrate(database, directory).filenames == ["1.sql"] and steps(database) == [1, 1]


def test_thousands_of_names_can_be_compared(database: Database, tmp_path: Path) -> None:
    migrate(database, write(tmp_path / "sql", {f"{number:05}.sql": "" for number in range(1500)}))
    assert len(recorded(database)) == 1500


def test_backslashes_mean_what_the_server_says(database: Database, tmp_path: Path) -> None:
    # Without escapes the string ends behind the backslash, and so does the statement.
    text = f"{note(1)}INSERT INTO log VALUES ('f', 2, 'a\\');\n{note(3)}SELECT nonsense;\n-- '\n"
    directory = write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": text})
    server = database.server
    ((mode,),) = server.query("SELECT @@GLOBAL.sql_mode")
    server.query(f"SET GLOBAL sql_mode = '{mode},NO_BACKSLASH_ESCAPES'")
    try:
        failing(database, directory)
        assert steps(database) == [1, 2, 3]
        ((half),) = coordinator(database, directory).status().half_applied
        assert (half.done, half.line, half.obstacle) == (3, 4, None)
        write(directory, {"0.sql": f"{LOG};\n", "1.sql": text.replace("SELECT nonsense;\n", note(4))})
        migrate(database, directory)
    finally:
        server.query(f"SET GLOBAL sql_mode = '{mode}'")
    assert steps(database) == [1, 2, 3, 4]


def test_name_that_the_ledger_cannot_hold_is_refused_before_it_is_run(database: Database, tmp_path: Path) -> None:
    database.query("CREATE TABLE schema_version (filename VARCHAR(255) CHARACTER SET latin1 PRIMARY KEY, success BOOL)")
    directory = write(tmp_path / "sql", {"1_\u0436.sql": f"{LOG};"})
    error, current = failing(database, directory)
    assert isinstance(error, LedgerError) and "1_\u0436.sql" in str(error) and current.newly_applied == 0
    assert not database.query("SHOW TABLES LIKE 'log'")
    assert migrate(database, write(directory, {"1_\u00e9.sql": f"{LOG};"})).newly_applied == 1  # Latin-1 has that one


def test_statement_to_go_on_at_must_be_of_a_file_that_is_there(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};"})
    error, _ = failing(database, directory, resume_at={"11.sql": 1})
    assert isinstance(error, ManifestError) and "11.sql" in str(error) and not database.query("SHOW TABLES")


def test_renames_are_followed_to_their_end(database: Database, tmp_path: Path) -> None:
    files = {"1.sql": f"{LOG};\n{note(1)}"}
    migrate(database, write(tmp_path / "sql", files))
    renames = {"1.sql": "2.sql", "2.sql": "3.sql"}  # the database missed the release between
    status = migrate(database, write(tmp_path / "sql", renamed(files, "1.sql", "3.sql")), renames=renames)
    assert status.newly_applied == 0 and recorded(database) == {"3.sql": 1} and steps(database) == [1]
    with pytest.raises(ValueError, match="back to"):
        coordinator(database, tmp_path / "sql", renames={"1.sql": "2.sql", "2.sql": "1.sql"})


def test_two_old_names_of_one_file_become_one_row(database: Database, tmp_path: Path) -> None:
    files = {"0.sql": f"{LOG};\n", "1.sql": note(1), "2.sql": note(2)}
    migrate(database, write(tmp_path / "sql", files))
    directory = write(tmp_path / "sql", {"0.sql": files["0.sql"], "3.sql": files["1.sql"] + files["2.sql"]})
    status = migrate(database, directory, renames={"1.sql": "3.sql", "2.sql": "3.sql"})
    assert status.newly_applied == 0 and recorded(database) == {"0.sql": 1, "3.sql": 1} and steps(database) == [1, 2]


def test_statement_to_go_on_at_of_a_file_that_never_began_is_refused(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};\n{note(1)}"})
    error, current = failing(database, directory, resume_at={"1.sql": 2})
    assert isinstance(error, HalfAppliedError) and "has not begun" in str(error) and current.newly_applied == 0
    migrate(database, directory)
    assert migrate(database, directory, resume_at={"1.sql": 2}).fast_path  # it stayed in a start-up script


def test_holder_is_told_though_nothing_is_pending(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    holder = database.connect()
    with holder.cursor() as cursor:
        take_lock(cursor, "theirs")
        status = coordinator(database, directory, lock_name="theirs").status()
    assert status.lock_holder is not None and status.lock_holder["connection_id"] == holder.thread_id()
    holder.close()
