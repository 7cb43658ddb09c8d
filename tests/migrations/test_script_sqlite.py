"""An SQLite script is taken apart as SQLite itself would."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql import sqlite_script as splitter
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.sqlite_script import split_sqlite

TRIGGER = (
    "CREATE TRIGGER a AFTER INSERT ON t BEGIN\n  SELECT CASE 1 WHEN 1 THEN ';' END;\n  DELETE FROM t; -- END;\nEND"
)


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("", []),
        (" \n-- x\n/* y; */;;\n; -- z", []),
        ("SELECT 1;SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("\ufeffSELECT 1 ;\r\nSELECT 2;\r\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT 'a;''b';SELECT \";\"", ["SELECT 'a;''b'", 'SELECT ";"']),
        ("SELECT `;`;SELECT [;]", ["SELECT `;`", "SELECT [;]"]),
        ("SELECT '\\';SELECT 2;", ["SELECT '\\'", "SELECT 2"]),
        ("SELECT '/*', \"--\"; SELECT 2", ["SELECT '/*', \"--\"", "SELECT 2"]),
        ("SELECT 1 -- it's;\n, 2 /* ;' */; SELECT 3 / 4 - 5", ["SELECT 1 -- it's;\n, 2 /* ;' */", "SELECT 3 / 4 - 5"]),
        (f"{TRIGGER};{TRIGGER}", [TRIGGER, TRIGGER]),
        ("CREATE TEMP TRIGGER a BEGIN x; END;x", ["CREATE TEMP TRIGGER a BEGIN x; END", "x"]),
        ("BEGIN; SELECT 1; END; SELECT 2", ["BEGIN", "SELECT 1", "END", "SELECT 2"]),
        ("SELECT 1 -- last", ["SELECT 1 -- last"]),
    ],
)  # fmt: skip
def test_statement_ends_where_sqlite_ends_it(script: str, statements: list[str]) -> None:
    assert [statement.text for statement in split_sqlite(script)] == statements


def test_statement_knows_the_line_where_it_begins() -> None:
    script = f"\r\n-- x\r\nSELECT 1;;SELECT\r\n2\r\n;\n\n/*\n*/ {TRIGGER};\nSELECT 3"
    assert split_sqlite(script) == [
        Statement("SELECT 1", 3),
        Statement("SELECT\n2", 3),
        Statement(TRIGGER, 8),
        Statement("SELECT 3", 12),
    ]


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("SELECT 1;\nSELECT 'a;\nb", 2),
        ('\n\nSELECT "a', 3),
        ("SELECT `a;", 1),
        ("SELECT [a;", 1),
        ("SELECT 1;\n\n/* a;", 3),
        ("SELECT 1;\nSELECT /* a;\n", 2),
        ("SELECT 1;\nCREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1;", 2),
        ("SELECT 1;\nSELECT '\0';", 2),
    ],
)
def test_what_does_not_end_is_refused_with_its_line(script: str, line: int) -> None:
    with pytest.raises(ScriptError) as caught:
        split_sqlite(script)
    assert caught.value.line == line


PIECES = [
    "SELECT 1",
    "x",
    "'",
    "''",
    '"',
    "`",
    "[",
    "]",
    "--",
    "/*",
    "*/",
    "-",
    "/",
    "*",
    "\\",
    ";",
    ";",
    "\n",
    " ",
    "ü",
]
WHOLE = [
    "INSERT INTO t VALUES (';')",
    "SELECT 1 -- it's;\n",
    "/* ;' */ SELECT ';''' ",
    TRIGGER,
    "SELECT ';' AS \"a;'\" ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=15).map("".join))
@settings(max_examples=500, deadline=None)
def test_any_text_is_split_at_every_place_where_sqlite_sees_an_end(text: str) -> None:
    try:
        found = [statement.text for statement in split_sqlite(text)]
    except ScriptError:
        return
    ends, begin = 0, 0
    for at, character in enumerate(text, 1):
        if character == ";" and sqlite3.complete_statement(text[begin:at]):
            ends, begin = ends + 1, at
    assert len(found) <= ends + 1
    for statement in found:
        assert statement.strip() == statement != ""
        assert sqlite3.complete_statement(statement + "\n;")


@given(st.lists(st.sampled_from(WHOLE), max_size=8))
@settings(deadline=None)
def test_statements_come_out_as_they_went_in_and_run(statements: list[str]) -> None:
    found = [statement.text for statement in split_sqlite(";\n".join(statements))]
    assert found == [statement.removeprefix("/* ;' */ ").rstrip() for statement in statements]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a)")
        for statement in found:
            connection.execute("DROP TRIGGER IF EXISTS a")
            connection.execute(statement)


def test_sqlite_is_not_asked_about_semicolons_in_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Asked:
        def complete_statement(self, text: str) -> Any:
            asked.append(len(text))
            return sqlite3.complete_statement(text)

    monkeypatch.setattr(splitter, "sqlite3", Asked())
    script = "INSERT INTO t VALUES ('" + ";" * 50_000 + "') /* ;;; */ -- ;;;\n;" + "SELECT 1;" * 1_000
    assert len(split_sqlite(script)) == 1_001
    assert sum(asked) <= len(script)
