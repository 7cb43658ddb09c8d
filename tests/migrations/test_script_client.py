"""The stock clients send what the splitter finds: read back from the general log of a real server."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from support.servers import Database, Server
from support.sql_scripts import NASTY, Script, scripts

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql.mysql_script import split_script

BOUNDED = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

_STRING = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"|`[^`]*`"
_COMMENT = r"/\*(?!M?!).*?\*/|\#[^\n]*|--(?=\s|\Z)[^\n]*"
_PART = re.compile(rf"({_STRING})|{_COMMENT}|\s+|(.)", re.DOTALL)


def plain(statement: str) -> str:
    """Without what a client or a log may leave out: comments, hints, white space, backslashes before newlines."""
    parts = (match.groups("") for match in _PART.finditer(statement.removeprefix("\ufeff")))
    text = "".join(string.replace("\\\n", "\n") + other for string, other in parts).strip(";")
    return re.sub(r"\Ause(?=\w)", "use", text, flags=re.IGNORECASE)


def sent(server: Server, script: str, database: str) -> list[str]:
    """The statements, made `plain`, that the stock client sent for ``script``."""
    with server.log() as log:
        # MySQL's present client runs only DELIMITER, unless an option restores the other commands.
        server.client(script.encode(), database, *(["--commands"] if server.flavour == "mysql" else []))
        texts = [
            f"use {entry.text}" if entry.command == "Init DB" else entry.text
            for entry in log.entries()
            if entry.command in ("Query", "Init DB")
        ]
    if server.flavour == "mysql":
        assert texts.pop(0).startswith("select @@version_comment")
    return [text for text in map(plain, texts) if text]


def found(script: str) -> list[str]:
    return [text for text in map(plain, split_script(script)) if text]


@given(script=scripts())
@BOUNDED
def test_client_sends_what_was_found(database: Database, script: Script) -> None:
    assert sent(database.server, script.text, database.name) == found(script.text)


@given(text=NASTY)
@BOUNDED
def test_client_splits_nonsense_alike(database: Database, text: str) -> None:
    if database.server.flavour == "mysql":
        pytest.skip("its log has nothing that does not parse")
    # Dollars quote for MySQL's client alone; this one takes the slash of */* for both comments; it obeys \\-.
    assume(not any(piece in text for piece in ("$", "*/*", "\\-", "use")))
    try:
        expected = found(text)
    except ScriptError:
        assume(False)
    assert sent(database.server, text, database.name) == expected


@pytest.mark.parametrize(
    "script",
    [
        "SELECT 1;\nuse information_schema\nSELECT 2;\n  Use mysql \r\nSELECT 3;use mysql;SELECT 4",
        "SELECT 1; DELIMITER // ; SELECT 2 //\nSELECT 3//",
        "DELIMITER // and more\nSELECT 1//\nDELIMITER 'a b'\nSELECT 2 a b SELECT 3 a b",
        "/*!50001 SELECT\n 1 /* ; */, ';' */;SELECT 2*/* it's; */3;",
        "/*M!50001 SELECT\n 1 /* ; */, ';' */;SELECT 2;",
        "SELECT 'a\\\nb';SELECT `a\\` FROM (SELECT 1 AS `a\\`) t;SELECT 1-- ;\n;SELECT 2",
        "\ufeffdelimiter abcdefghijklmno\nSELECT 1;abcdefghijklmno\ndelimiter ;\nSELECT 2",
        "-- a\n# b;\n/* c\n; */\nSELECT 1 -- d;\n;\n;;\n-- e",
        "SELECT 1\\G SELECT 2\\g\n\\g SELECT 3",
        "-- x\nDELIMITER $$\nCREATE PROCEDURE p()\nBEGIN\n\n  -- it's $$\n  SELECT '$$;';\nEND$$\nCALL p()$$",
    ],
)
def test_client_obeys_the_rule(database: Database, script: str) -> None:
    if "/*M!" in script and database.server.flavour == "mysql":
        pytest.skip("a plain comment there")
    queried = [text for text in sent(database.server, script, database.name) if text != "SELECTDATABASE()"]
    assert queried == found(script)


def test_part_of_a_dump_is_commented_out_alike(database: Database) -> None:
    script = "/* no more:\n/*!40101 SELECT 1 */;\n/*!40101 SELECT 2 */;\n*/ SELECT 3;\nSELECT 4;"
    kept = [] if database.server.flavour == "mysql" else ["SELECT3"]  # MySQL's client sends the comment, too
    assert sent(database.server, script, database.name) == [*kept, "SELECT4"]
    assert found(script) == ["SELECT3", "SELECT4"]


def test_dollars_quote_for_the_client_of_mysql(database: Database) -> None:
    if database.server.flavour == "mariadb":
        pytest.skip("it has no routines in other languages")
    script = "CREATE FUNCTION f(a INT) RETURNS INT LANGUAGE JAVASCRIPT AS $x$ return a; // it's\n $x$;\nSELECT 1;"
    assert sent(database.server, script, database.name)[-1] == "SELECT1"
    assert len(found(script)) == 2
