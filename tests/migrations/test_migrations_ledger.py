"""What has been applied: read right or not at all, written once, shared with R; names, renames, drift, manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.link import Link
from support.migrations.scenes import (
    LOG,
    R_LEDGER,
    coordinator,
    failing,
    logged,
    migrate,
    numbered,
    recorded,
    steps,
    url,
    write,
)
from support.servers import Database

from sharedvol.errors import DatabaseError, LedgerError, LockLostError, ManifestError, SharedVolError
from sharedvol.migrations import MigrationCoordinator

FILES = numbered(2)


def note(step: int) -> str:
    return f"INSERT INTO log VALUES ('f', {step}, NULL);\n"


@pytest.fixture
def account(database: Database) -> Iterator[str]:
    """An account that may do nothing yet."""
    name = f"user_{database.name}"
    database.query(f"CREATE USER {name}@'%' IDENTIFIED BY 'word'")
    yield name
    database.query(f"DROP USER {name}@'%'")


def as_account(database: Database, account: str, directory: Path) -> MigrationCoordinator:
    return MigrationCoordinator(url(database).replace("//root@", f"//{account}:word@"), directory, lock_timeout=0)


def assert_refused_unread(database: Database, directory: Path, *words: str) -> SharedVolError:
    """What cannot be read is never taken for "nothing applied": nothing is run, by `run`, `plan` and `status`."""
    before = database.query("SHOW TABLES")
    error, current = failing(database, directory)
    for again in (coordinator(database, directory).plan, coordinator(database, directory).status):
        with pytest.raises(type(error)):
            again()
    assert all(word in str(error) for word in words), error
    assert database.query("SHOW TABLES") == before
    assert current.newly_applied == 0 and not current.ready and not current.fast_path
    return error


def test_row_without_success_is_pending_and_ends_as_one_row_with_it(database: Database, tmp_path: Path) -> None:
    database.query(R_LEDGER)
    database.query(LOG)
    database.query("INSERT INTO schema_version (filename, success) VALUES ('000_log.sql', 1), ('001_table.sql', 0)")
    made = coordinator(database, write(tmp_path / "sql", FILES))
    assert made.plan().pending == ["001_table.sql", "002_table.sql"]
    assert migrate(database, tmp_path / "sql").filenames == ["001_table.sql", "002_table.sql"]
    assert database.query("SELECT filename, success FROM schema_version ORDER BY 1") == [(name, 1) for name in FILES]


def test_empty_and_comment_only_files_are_recorded(database: Database, tmp_path: Path) -> None:
    files = {"1.sql": "", "2.sql": "-- none\n/* none */;\n# none", "3.sql": "\ufeff\r\n", "4.sql": ";;;"}
    assert migrate(database, write(tmp_path / "sql", files)).newly_applied == 4
    assert recorded(database) == dict.fromkeys(files, 1)
    assert migrate(database, tmp_path / "sql").fast_path


@pytest.mark.parametrize("names", [("a.sql", "A.sql"), ("straße.sql", "STRASSE.sql"), ("e.sql", "é.sql")])
def test_names_that_the_ledger_takes_for_one_are_refused_before_anything_is_run(
    database: Database, tmp_path: Path, names: tuple[str, str]
) -> None:
    database.query(R_LEDGER.replace("VARCHAR(255)", "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"))
    error, current = failing(database, write(tmp_path / "sql", dict.fromkeys(names, f"{LOG};\n")))
    assert isinstance(error, LedgerError) and all(repr(name) in str(error) for name in names)
    assert current.newly_applied == 0 and not recorded(database) and not logged(database)


def test_file_and_row_that_the_ledger_takes_for_one_are_refused(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    error, current = failing(database, write(directory, {**FILES, "001_TABLE.sql": note(9)}))
    assert isinstance(error, LedgerError) and "'001_TABLE.sql'" in str(error) and "'001_table.sql'" in str(error)
    assert current.newly_applied == 0 and current.pending == ["001_TABLE.sql"] and 9 not in steps(database)


def test_ledger_that_tells_names_apart_takes_them(database: Database, tmp_path: Path) -> None:
    database.query(R_LEDGER.replace("VARCHAR(255)", "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"))
    files = {"0.sql": f"{LOG};", "a.sql": note(1), "A.sql": note(2), "é.sql": note(3), "e.sql": note(4)}
    migrate(database, write(tmp_path / "sql", files))
    assert steps(database) == [1, 2, 3, 4] and recorded(database) == dict.fromkeys(files, 1)


def test_account_that_may_only_read_the_ledger_starts_on_a_current_schema(
    database: Database, tmp_path: Path, account: str
) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    database.query(f"GRANT SELECT ON {database.name}.schema_version TO {account}@'%'")
    made = as_account(database, account, directory)
    status = made.run()
    assert status.ready and status.fast_path and not status.lock_acquired and made.status().ready
    write(directory, {**FILES, "999.sql": note(9)})
    with pytest.raises(LedgerError, match=r"may not read the table sharedvol_migration.*grant SELECT"):
        as_account(database, account, directory).run()
    assert 9 not in steps(database)


def test_account_that_may_not_create_is_told_what_to_run(database: Database, tmp_path: Path, account: str) -> None:
    database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database.name}.* TO {account}@'%'")
    directory = write(tmp_path / "sql", {"1.sql": "DO 1;"})
    with pytest.raises(LedgerError, match=r"grant CREATE to the account.*CREATE TABLE IF NOT EXISTS"):
        as_account(database, account, directory).run()
    assert not database.query("SHOW TABLES")
    migrate(database, directory)
    write(directory, {"1.sql": "DO 1;", "2.sql": "DO 2;"})
    assert as_account(database, account, directory).run().newly_applied == 1


def test_ledger_that_may_not_be_read_is_an_error(database: Database, tmp_path: Path, account: str) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    database.query(f"GRANT SELECT ON {database.name}.log TO {account}@'%'")
    made = as_account(database, account, directory)
    for look in (made.run, made.plan, made.status):
        with pytest.raises(LedgerError, match=r"cannot read the table .*schema_version.*nothing is run"):
            look()


BROKEN = {
    "no column for success": "CREATE TABLE schema_version (filename VARCHAR(255) PRIMARY KEY)",
    "no column for names": "CREATE TABLE schema_version (name VARCHAR(255) PRIMARY KEY, success BOOLEAN)",
    "view of a dropped table": "CREATE VIEW schema_version AS SELECT filename, success FROM gone",
    "view of a dropped column": "CREATE VIEW schema_version AS SELECT filename, success FROM kept",
    "our own without a column": "CREATE TABLE sharedvol_migration (id INT)",
    "our own a broken view": "CREATE VIEW sharedvol_migration AS SELECT filename FROM gone",
}


@pytest.mark.parametrize("how", BROKEN)
def test_ledger_that_cannot_be_read_is_never_taken_for_an_empty_one(
    database: Database, tmp_path: Path, how: str
) -> None:
    database.query("CREATE TABLE gone (filename VARCHAR(255), success BOOLEAN)")
    database.query("CREATE TABLE kept (filename VARCHAR(255), success BOOLEAN)")
    database.query(BROKEN[how])
    database.query("DROP TABLE gone")
    database.query("ALTER TABLE kept DROP success")
    assert_refused_unread(database, write(tmp_path / "sql", FILES), "what has been applied is not known")


@pytest.mark.parametrize("table", [b"FROM schema_version", b"FROM sharedvol_migration"])
@pytest.mark.parametrize("delivered", [True, False])
def test_connection_lost_over_the_ledger_is_an_error(
    database: Database, tmp_path: Path, table: bytes, delivered: bool
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with Link(database.server) as link:
        made = MigrationCoordinator(f"{link.url(database.name)}&ssl_disabled=1", directory)
        for look in (made.run, made.plan, made.status):
            link.drop_on(table, delivered=delivered)
            with pytest.raises(DatabaseError) as caught:
                look()
            assert caught.value.lost
    assert not database.query("SHOW TABLES") and made.current.newly_applied == 0


def test_url_without_a_schema_is_an_error_that_says_so(database: Database, tmp_path: Path) -> None:
    made = MigrationCoordinator(database.server.url(), write(tmp_path / "sql", FILES))
    for look in (made.run, made.plan, made.status):
        with pytest.raises(LedgerError, match="name the database in the URL"):
            look()


def test_fast_path_takes_three_round_trips_at_most(database: Database, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)
    migrate(database, directory)
    with Link(database.server) as link:
        link.connect(database.name).close()  # its thread is ready
        link.clear()
        assert MigrationCoordinator(link.url(database.name), directory).run().fast_path
        assert link.round_trips <= 3, link.packets
        assert not any(b"GET_LOCK" in packet for packet in link.packets)


def test_script_that_releases_the_lock_is_stopped_before_its_next_statement(database: Database, tmp_path: Path) -> None:
    files = {"1.sql": f"{LOG};\n", "2.sql": f"{note(1)}DO RELEASE_ALL_LOCKS();\n{note(3)}"}
    error, current = failing(database, write(tmp_path / "sql", files))
    assert isinstance(error, LockLostError) and "2.sql" in str(error)
    assert steps(database) == [1] and recorded(database) == {"1.sql": 1}
    assert current.filenames == ["1.sql"] and current.pending == ["2.sql"]


def test_lock_released_by_the_last_statement_records_nothing(database: Database, tmp_path: Path) -> None:
    files = {"1.sql": f"{LOG};\n", "2.sql": f"{note(1)}DO RELEASE_ALL_LOCKS();\n", "3.sql": note(3)}
    error, current = failing(database, write(tmp_path / "sql", files))
    assert isinstance(error, LockLostError)
    assert recorded(database) == {"1.sql": 1} and current.filenames == ["1.sql"]
    write(tmp_path / "sql", {**files, "2.sql": f"{note(1)}DO RELEASE_ALL_LOCKS();\n"})
    assert migrate(database, tmp_path / "sql").filenames == ["2.sql", "3.sql"]
    assert steps(database) == [1, 3]


def test_lock_lost_to_another_connection_writes_nothing_more(database: Database, tmp_path: Path) -> None:
    # As through a pooler that changes sessions: our connection continues, and another one has the lock.
    files = {"1.sql": f"{LOG};\n", "2.sql": f"{note(1)}{note(2)}{note(3)}"}
    with closing(database.connect()) as other, other.cursor() as cursor:
        made = coordinator(database, write(tmp_path / "sql", files))
        name = f"{database.name}.sharedvol_migration"
        files["2.sql"] = f"{note(1)}DO RELEASE_LOCK('{name}');\n{note(3)}"
        write(tmp_path / "sql", files)
        taken: list[object] = []

        def take(step: object) -> None:
            if getattr(step, "statement", 0) == 3:
                cursor.execute("SELECT GET_LOCK(%s, 0)", (name,))
                taken.append(cursor.fetchone())

        made = coordinator(database, tmp_path / "sql", observer=take)
        with pytest.raises(LockLostError):
            made.run()
    assert taken == [(1,)] and steps(database) == [1] and recorded(database) == {"1.sql": 1}


# What the image brought, in R's words.


def test_manifest_is_told_in_the_words_of_r(database: Database, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", write(tmp_path / "empty", {})
    directory = write(tmp_path / "sql", FILES)
    for place, options, told in (
        (missing, {}, f"Migrations directory does not exist: {missing}"),
        (empty, {}, f"No migration files found in: {empty}"),
        (
            directory,
            {"expected_latest": "009.sql"},
            "Expected latest migration mismatch: expected 009.sql, found 002_table.sql",
        ),
        (directory, {"expected_min_count": 7}, "Migration file count too low: found 3, expected at least 7"),
    ):
        error, _ = failing(database, place, **options)
        assert isinstance(error, ManifestError) and str(error) == told
    assert not database.query("SHOW TABLES")
    status = migrate(database, directory, expected_latest="002_table.sql", expected_min_count=3)
    assert status.as_dict()["manifest"] == {
        "ok": True,
        "allowed_empty": False,
        "count": 3,
        "expected_latest": "002_table.sql",
        "latest": "002_table.sql",
    }


def test_last_file_that_cannot_be_taken_apart_stops_before_the_first(database: Database, tmp_path: Path) -> None:
    files = {**FILES, "003.sql": "INSERT INTO log\nVALUES ('never closed);\n"}
    error, current = failing(database, write(tmp_path / "sql", files))
    assert isinstance(error, ManifestError) and "003.sql', line 2" in str(error)
    assert not database.query("SHOW TABLES") and current.pending == list(files)
