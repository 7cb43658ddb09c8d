"""What R makes of a directory, a ledger and a server: the same as Python, in the same words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import wait_until
from support.r.rmigrations import (
    LOCK,
    LOG,
    Gate,
    Replica,
    coordinator,
    holder,
    logged,
    note,
    numbered,
    recorded,
    write,
)
from support.servers import Database, Server

from sharedvol.errors import ManifestError, SharedVolError
from sharedvol.locks.mysql import NamedLock

FILES = numbered(2)
R_LEDGER = (
    "CREATE TABLE schema_version (filename VARCHAR(255) PRIMARY KEY, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
)


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    """An R replica, to migrate one database after the other."""
    with Replica() as made:
        yield made


@pytest.fixture(scope="module")
def replica_in_c() -> Iterator[Replica]:
    """One whose locale knows nothing beyond ASCII, as in a bare container."""
    with Replica(LC_ALL="C") as made:
        yield made


@pytest.fixture
def mariadb(_server_of: Callable[[str], Server]) -> Iterator[Database]:
    """An empty database, where one server will do."""
    server = _server_of("mariadb")
    made = Database(server, server.create_database())
    yield made
    made.drop()


def test_status_has_the_fields_and_values_of_python(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", {**FILES, "003_empty.sql": "", "004_comment.sql": "-- nothing\n/* here; */\n"})
    expected = {"expected_latest": "004_comment.sql", "expected_min_count": 5}
    ours = replica.migrate(database, directory, **expected)
    assert recorded(database) == dict.fromkeys(sorted(os.listdir(directory)), 1)  # a file without a statement, too
    database.query("DROP TABLE schema_version, log, t001, t002")
    theirs = coordinator(database, directory, **expected).run().as_dict()
    for status in (ours, theirs):
        assert status.pop("last_run").endswith("+00:00") and status.pop("waited") >= 0
    assert {key: ours[key] for key in theirs} == theirs
    fast = coordinator(database, directory).run().as_dict()
    found = replica.migrate(database, directory)
    assert {key: found[key] for key in fast if key != "last_run"} == {k: v for k, v in fast.items() if k != "last_run"}


def files(**texts: str) -> Callable[[Path], object]:
    return lambda place: write(place, {name.replace("_sql", ".sql"): text for name, text in texts.items()})


def raw(name: bytes, data: bytes) -> Callable[[Path], object]:
    return lambda place: (place.mkdir(), Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(data))


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "no directory": (lambda place: None, {}),
    "a file for a directory": (lambda place: place.write_text(""), {}),
    "no files": (files(readme="x"), {}),
    "another latest": (files(a_sql="", b_sql=""), {"expected_latest": "c.sql"}),
    "a latest of none": (files(), {"expected_latest": "c.sql", "allow_empty": True}),
    "too few": (files(a_sql="", b_sql=""), {"expected_min_count": 3}),
    "a directory for a file": (lambda place: (place / "x.sql").mkdir(parents=True), {}),
    "a FIFO": (lambda place: (place.mkdir(), os.mkfifo(place / "x.sql")), {}),
    "a device": (lambda place: (place.mkdir(), (place / "x.sql").symlink_to("/dev/zero")), {}),
    "a tab in a name": (raw(b"a\tb.sql", b""), {}),
    "a long name": (raw("ü".encode() * 120 + b".sql", b"'"), {}),
    "no UTF-8": (raw(b"a.sql", b"SELECT 1;\n\nSELECT '\xfc';"), {}),
    "no SQL": (files(a_sql="SELECT 1;\nSELECT 'x"), {}),
    "a NUL": (raw(b"\xc3\xa9.sql", b"SELECT 1;\nSELECT '\0';"), {}),
    "a client command": (files(a_sql="SELECT 1;", b_sql="source x.sql\n"), {}),
}


@pytest.mark.parametrize("what", list(BAD))
def test_directory_is_refused_in_the_words_of_python(
    what: str, mariadb: Database, tmp_path: Path, replica: Replica, replica_in_c: Replica
) -> None:
    database = mariadb  # no server has a part in it
    make, options = BAD[what]
    make(tmp_path / "sql")
    with pytest.raises(ManifestError) as caught:
        coordinator(database, tmp_path / "sql", **options).run()
    for one in (replica, replica_in_c):
        found = one.failing(database, tmp_path / "sql", **options)
        assert found["error"] == str(caught.value)
        assert found["classes"][0] == "sv_manifest_error" and found["status"]["newly_applied"] == 0
        theirs = coordinator(database, tmp_path / "sql", **options)
        with pytest.raises(ManifestError):
            theirs.run()
        if (manifest := theirs.current.manifest) is not None:
            assert found["status"]["manifest"] == manifest.as_dict()
    assert not database.query("SHOW TABLES LIKE 'schema_version'")  # nothing is run where one file is wrong


def test_file_that_goes_before_it_is_read_is_told(mariadb: Database, tmp_path: Path, replica: Replica) -> None:
    place = tmp_path / "sql"
    place.mkdir()
    (place / "x.sql").symlink_to("gone")
    with pytest.raises(ManifestError) as caught:
        coordinator(mariadb, place).run()
    found = replica.failing(mariadb, place)
    assert found["error"].split("': ")[0] == str(caught.value).split("': ")[0]


def test_name_that_is_not_utf8_is_refused(mariadb: Database, tmp_path: Path, replica: Replica) -> None:
    raw(b"a\xfc.sql", b"")(tmp_path / "sql")
    found = replica.failing(mariadb, tmp_path / "sql")
    assert found["error"] == f"the name of '{tmp_path}/sql/a<fc>.sql' is not UTF-8, and the ledger is: rename the file"


def test_files_are_taken_in_the_order_of_their_bytes_in_each_locale(
    database: Database, tmp_path: Path, replica: Replica, replica_in_c: Replica
) -> None:
    names = ["_.sql", "B.sql", "a.sql", "A.sql", "a-b.sql", "a_b.sql", "10.sql", "9.sql", "é.sql", "z.sql", "😀.sql"]
    directory = write(tmp_path / "sql", {**dict.fromkeys(names, "-- nothing"), ".hidden.sql": "no", "x.txt": "no"})
    database.query(R_LEDGER.replace("VARCHAR(255)", "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"))
    wanted = sorted(names, key=str.encode)
    for one in (replica, replica_in_c):
        assert one.migrate(database, directory)["filenames"] == wanted
        assert recorded(database) == dict.fromkeys(wanted, 1)
        assert coordinator(database, directory).run().fast_path
        database.query("DELETE FROM schema_version")


def test_text_reaches_the_server_as_it_is(
    database: Database, tmp_path: Path, replica: Replica, replica_in_c: Replica
) -> None:
    text = '100% :name ? %s {x} \\\\ "é😀" `` -- # /* */ ;'
    body = f"\ufeff{LOG};\r\n{note('1', 1, repr(text))}DELIMITER //\r\nCREATE PROCEDURE p() BEGIN\r\n {note('1', 2)}"
    body += " SELECT 1; SELECT 2 UNION SELECT 3; END//\r\nDELIMITER ;\r\nCALL p(); SELECT 4; SELECT '🙂';\r\n"
    directory = write(tmp_path / "sql", {"1.sql": body, "2.sql": note("2", 1)})
    for one in (replica, replica_in_c):
        assert one.migrate(database, directory)["newly_applied"] == 2
        assert database.query("SELECT note FROM log WHERE step = 1 AND file = '1'") == [(text,)]
        assert logged(database) == {("1", 1): 1, ("1", 2): 1, ("2", 1): 1}
        database.query("DROP TABLE log, schema_version")
        database.query("DROP PROCEDURE p")


def test_backslashes_mean_what_the_server_says(database: Database, tmp_path: Path, replica: Replica) -> None:
    text = f"{LOG};\nINSERT INTO log VALUES ('f', 2, 'a\\');\n{note('f', 3)}-- '\n"
    directory = write(tmp_path / "sql", {"1.sql": text})
    ((mode,),) = database.server.query("SELECT @@GLOBAL.sql_mode")
    database.server.query(f"SET GLOBAL sql_mode = '{mode},NO_BACKSLASH_ESCAPES,ANSI_QUOTES'")
    try:
        assert replica.migrate(database, directory)["newly_applied"] == 1
    finally:
        database.server.query(f"SET GLOBAL sql_mode = '{mode}'")
    assert logged(database) == {("f", 2): 1, ("f", 3): 1}


FAILING = {
    "a statement": "INSERT INTO nowhere VALUES (1)",
    "a later result of a CALL": "CALL broken()",
    "rows behind the first": "SELECT IF(step < 3, step, (SELECT 1 UNION SELECT 2)) FROM log ORDER BY step",
    "SIGNAL": "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no 100%'",
}


@pytest.mark.parametrize("what", list(FAILING))
def test_error_is_seen_wherever_it_comes_and_told_truthfully(
    what: str, database: Database, tmp_path: Path, replica: Replica
) -> None:
    first = f"{LOG};\n{note('1', 1)}{note('1', 2)}{note('1', 3)}DELIMITER //\n"
    first += "CREATE PROCEDURE broken() BEGIN SELECT 1; SELECT * FROM nowhere; END//\n"
    second = f"{note('2', 1)}\n  {FAILING[what]};\n{note('2', 3)}"
    directory = write(tmp_path / "sql", {"1.sql": first, "2.sql": second, "3.sql": note("3", 1)})
    found = replica.failing(database, directory)
    words = " ".join(FAILING[what].split("(")[0].split()[:3])
    assert "sv_statement_failed" in found["classes"] and "2.sql: statement 2 of 3 (line 3, " in found["error"]
    assert words.split()[0] in found["error"] and "100%" not in found["error"].split(" failed: ")[0]
    assert "; applied by this run before: 1.sql" in found["error"]
    status = found["status"]
    assert (status["newly_applied"], status["filenames"], status["pending"]) == (1, ["1.sql"], ["2.sql", "3.sql"])
    assert recorded(database) == {"1.sql": 1}  # no row says failed
    assert logged(database)["2", 1] == 1 and logged(database)["2", 3] == 0
    write(directory, {"1.sql": first, "2.sql": note("2", 3), "3.sql": note("3", 1)})
    assert replica.migrate(database, directory)["filenames"] == ["2.sql", "3.sql"]


def test_transaction_of_a_file_that_failed_is_undone(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};", "2.sql": f"BEGIN;\n{note('2', 1)}SELECT nonsense;\n"})
    replica.failing(database, directory)
    assert recorded(database) == {"1.sql": 1} and not logged(database)


def test_connection_that_is_killed_is_told_and_not_replaced(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    with Gate(database) as gate:
        stopped = {**FILES, "001_table.sql": note("001", 1) + gate.statement + note("001", 3)}
        directory = write(tmp_path / "sql", stopped)
        replica.send(database, directory)
        database.server.query(f"KILL {gate.wait_reached()}")
        found = replica.receive()
    assert "sv_statement_failed" in found["classes"] and found["open"] == 0
    assert "001_table.sql: statement 2 of 3 (line 2, DO GET_LOCK" in found["error"]
    assert "the connection is gone, and the lock with it" in found["error"]
    status = found["status"]
    assert (status["filenames"], status["pending"]) == (["000_log.sql"], ["001_table.sql", "002_table.sql"])
    assert recorded(database) == {"000_log.sql": 1} and logged(database)["001", 3] == 0
    assert replica.migrate(database, write(directory, FILES))["newly_applied"] == 2


def test_connection_that_is_lost_while_a_file_is_recorded_is_told_as_such(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    with Gate(database) as gate:
        body = gate.statement.replace("DO ", "SET @x = ").strip()
        slow = f"CREATE TRIGGER slow BEFORE INSERT ON schema_version FOR EACH ROW {body}"
        directory = write(tmp_path / "sql", {"1.sql": f"{LOG};\n{note('1', 1)}{slow}"})
        replica.send(database, directory)
        database.server.query(f"KILL {gate.wait_reached()}")
        found = replica.receive()
    assert "sv_database_error" in found["classes"] and found["open"] == 0
    assert found["error"].startswith("the connection was lost while recording '1.sql': the next start will see")
    assert found["status"]["filenames"] == [] and found["status"]["pending"] == ["1.sql"]
    assert not recorded(database)


@pytest.mark.parametrize("released", ["DO RELEASE_ALL_LOCKS()", f"SELECT RELEASE_LOCK('{LOCK}')"])
def test_lock_that_is_lost_ends_the_run_and_nothing_is_recorded(
    released: str, database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};", "2.sql": f"{note('2', 1)}{released};", "3.sql": ""})
    found = replica.failing(database, directory)
    assert "sv_lock_lost" in found["classes"] and f"the lock '{LOCK}' was lost before the end of:" in found["error"]
    assert found["status"]["filenames"] == ["1.sql"] and recorded(database) == {"1.sql": 1}


def test_what_a_file_sets_and_opens_ends_with_it(database: Database, tmp_path: Path, replica: Replica) -> None:
    opened = (
        "SET NAMES latin1; SET @x = 5, foreign_key_checks = 0, SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES';"
    )
    opened += f"SET SESSION group_concat_max_len = 77; SET autocommit = 0;\n{note('1', 1)}LOCK TABLES log WRITE;\n"
    opened += f"{note('1', 2)}USE mysql;\n"
    asked = "CONCAT(@@autocommit + 0, @@foreign_key_checks + 0, @@group_concat_max_len <> 77, @x IS NULL, "
    asked += "@@character_set_client, @@sql_mode LIKE '%ANSI%', DATABASE())"
    files = {"0.sql": f"{LOG};", "1.sql": opened, "2.sql": note("2", 1, asked), "é.sql": ""}
    assert replica.migrate(database, write(tmp_path / "sql", files))["newly_applied"] == 4
    assert database.query("SELECT note FROM log WHERE file = '2'") == [(f"1111utf8mb40{database.name}",)]
    assert logged(database) == {("1", 1): 1, ("1", 2): 1, ("2", 1): 1} and len(recorded(database)) == 4


def test_row_counts_are_those_of_the_statement_before(database: Database, tmp_path: Path, replica: Replica) -> None:
    text = f"{LOG};\n{note('1', 1)}{note('1', 2)}UPDATE log SET note = 'x';\n{note('1', 4, 'ROW_COUNT()')}"
    replica.migrate(database, write(tmp_path / "sql", {"1.sql": text}))
    assert database.query("SELECT note FROM log WHERE step = 4") == [("2",)]


def test_renamed_file_keeps_its_row_and_is_not_run_again(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    coordinator(database, directory).run()
    before = database.query("SELECT applied_at FROM schema_version ORDER BY filename")
    new = {name.replace("001_table", "001_éTABLE"): text for name, text in FILES.items()}
    renames = {"001_first.sql": "001_table.sql", "001_table.sql": "001_éTABLE.sql", "x.sql": "gone.sql"}
    status = replica.migrate(database, write(directory, new), renames=renames)
    assert (status["filenames"], status["newly_applied"], status["state"]) == ([], 0, "up_to_date")
    assert recorded(database) == dict.fromkeys(new, 1)
    assert database.query("SELECT applied_at FROM schema_version ORDER BY filename") == before
    database.query("INSERT INTO schema_version (filename) VALUES ('001_first.sql')")  # both rows: the old one goes
    status = replica.migrate(database, write(directory, {**new, "9.sql": note("9", 1)}), renames=renames)
    assert status["filenames"] == ["9.sql"] and recorded(database) == dict.fromkeys([*new, "9.sql"], 1)
    assert coordinator(database, directory, renames=renames).run().fast_path
    assert set(logged(database).values()) == {1}


def test_row_that_says_failed_is_pending_and_becomes_success(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    database.query(R_LEDGER)
    database.query("INSERT INTO schema_version (filename, success) VALUES ('1.sql', FALSE)")
    status = replica.migrate(database, write(tmp_path / "sql", {"1.sql": f"{LOG};"}))
    assert status["filenames"] == ["1.sql"] and recorded(database) == {"1.sql": 1}


def test_database_that_is_ahead_is_told_apart(database: Database, tmp_path: Path, replica: Replica) -> None:
    coordinator(database, write(tmp_path / "sql", {**FILES, "9.sql": ""})).run()
    status = replica.migrate(database, write(tmp_path / "sql", FILES))
    assert (status["state"], status["ahead"], status["fast_path"]) == ("ahead", ["9.sql"], True)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("utf8mb4", ["a.sql", "A.sql"]),
        ("latin1", ["1_\u0436.sql"]),
        ("latin1 COLLATE latin1_german1_ci", ["e.sql", "é.sql"]),
    ],
)
def test_names_that_the_ledger_cannot_tell_or_hold_are_refused_in_the_words_of_python(
    column: str, names: list[str], database: Database, tmp_path: Path, replica: Replica
) -> None:
    text = f"VARCHAR(255) CHARACTER SET {column}"
    database.query(f"CREATE TABLE schema_version (filename {text} PRIMARY KEY, success BOOL DEFAULT TRUE)")
    directory = write(tmp_path / "sql", dict.fromkeys(names, "SELECT nonsense;"))
    made = coordinator(database, directory)
    with pytest.raises(SharedVolError) as caught:
        made.run()
    found = replica.failing(database, directory)
    assert "sv_ledger_error" in found["classes"] and found["error"] == str(caught.value)
    assert "the ledger cannot" in found["error"] and not recorded(database)


def test_ledger_that_cannot_be_read_is_never_an_empty_one(database: Database, tmp_path: Path, replica: Replica) -> None:
    database.query("CREATE TABLE schema_version (something INT)")
    found = replica.failing(database, write(tmp_path / "sql", FILES))
    assert "sv_ledger_error" in found["classes"] and "nothing is run" in found["error"]
    assert not database.query("SHOW TABLES LIKE 'log'") and not found["status"]["lock_acquired"]


def test_account_needs_only_the_rights_for_what_there_is_to_do(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    user = f"u_{database.name}"
    directory = write(tmp_path / "sql", FILES)
    database.query(f"CREATE USER {user} IDENTIFIED BY 'sécret \"quoted\"'")
    account = {"user": user, "password": 'sécret "quoted"'}  # on MySQL 9 by caching_sha2_password, without TLS
    try:
        database.query(f"GRANT SELECT ON {database.name}.* TO {user}")
        found = replica.failing(database, directory, **account)
        assert "sv_ledger_error" in found["classes"] and "grant CREATE to the account" in found["error"]
        replica.migrate(database, directory)
        assert replica.migrate(database, directory, **account)["fast_path"]
        database.query(f"GRANT INSERT ON {database.name}.* TO {user}")
        write(directory, {**FILES, "9.sql": note("9", 1)})
        assert replica.migrate(database, directory, **account)["filenames"] == ["9.sql"]  # without CREATE
    finally:
        database.query(f"DROP USER {user}")


def test_database_that_cannot_be_reached_or_named_is_told(database: Database, tmp_path: Path, replica: Replica) -> None:
    directory = write(tmp_path / "sql", FILES)
    found = replica.failing(database, directory, port=1)
    assert "sv_database_error" in found["classes"] and found["error"].startswith("cannot connect to the database: ")
    assert found["status"]["total_migrations"] == len(FILES) and found["status"]["manifest"]["ok"]
    found = replica.failing(Database(database.server, ""), directory)
    assert "sv_ledger_error" in found["classes"] and "the connection has no schema" in found["error"]


@pytest.mark.parametrize("name", ["é" * 97, "😀", "x" * 193])
def test_lock_name_that_the_server_does_not_take_is_refused(
    name: str, database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", {"1.sql": f"{LOG};"})
    if name == "😀" and database.server.flavour == "mariadb":
        assert replica.migrate(database, directory, lock_name=name)["lock_name"] == name
        return
    made = coordinator(database, directory, lock_name=name)
    with pytest.raises(SharedVolError) as caught:
        made.run()
    found = replica.failing(database, directory, lock_name=name)
    assert "sv_lock_error" in found["classes"] and not database.query("SHOW TABLES")
    assert found["error"].split(" that ")[0] == str(caught.value).split(" that ")[0]


def test_lock_of_python_without_a_literal_name_can_be_shared(
    database: Database, tmp_path: Path, replica: Replica
) -> None:
    directory = write(tmp_path / "sql", FILES)
    with NamedLock(f"{database.url}&ssl_disabled=1", "sharedvol_migration", timeout=0):
        found = replica.failing(database, directory, lock_name=f"{database.name}.sharedvol_migration", timeout=0)
    assert "sv_lock_timeout" in found["classes"]


def test_hundreds_of_files_are_one_run(mariadb: Database, tmp_path: Path, replica: Replica) -> None:
    database = mariadb
    names = [f"{number:05}.sql" for number in range(300)]
    directory = write(tmp_path / "sql", dict.fromkeys(names, ""))
    assert replica.migrate(database, directory)["filenames"] == names
    wait_until(lambda: holder(database.server) is None, "the lock")
    assert coordinator(database, directory).run().fast_path
