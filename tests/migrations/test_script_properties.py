"""What holds for every script: the statements that went in come out, and nothing but ScriptError ever does."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from support.sql_scripts import NASTY, Script, scripts

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql import mysql_script as splitter
from sharedvol.migrations.sql.mysql_script import parse_script, split_script

FRESH = "<%&%>"


def joined(statements: list[str]) -> str:
    """A script of the same statements, whatever is in them."""
    return f"DELIMITER {FRESH}\n" + "".join(f"{statement}{FRESH}\n" for statement in statements)


@given(scripts())
@settings(max_examples=500, deadline=None)
def test_statements_come_out_as_they_went_in(script: Script) -> None:
    assert split_script(script.text) == script.statements


@given(scripts())
@settings(deadline=None)
def test_split_statements_are_not_split_further(script: Script) -> None:
    once = split_script(script.text)
    assert split_script(joined(once)) == once


@given(scripts())
@settings(deadline=None)
def test_statement_begins_on_its_line(script: Script) -> None:
    lines = script.text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    for statement in parse_script(script.text):
        assert statement.text.split("\n")[0] in lines[statement.line - 1]


@given(NASTY)
@settings(max_examples=1000, deadline=None)
def test_any_text_is_split_or_refused(text: str) -> None:
    for escapes in (True, False):
        try:
            found = parse_script(text, backslash_escapes=escapes)
        except ScriptError as error:
            assert 1 <= error.line <= text.count("\n") + 1
            continue
        left = text.replace("\r\n", "\n")
        for statement in found:
            assert statement.text == statement.text.strip(" \t\n\r\v\f") != ""
            assert statement.text in left
            left = left[left.index(statement.text) + len(statement.text) :]


@given(NASTY)
@settings(deadline=None)
def test_any_text_that_was_split_is_not_split_further(text: str) -> None:
    assume("$" not in text)  # behind the delimiter ``go`` it opens nothing, behind white space it does
    try:
        once = split_script(text)
    except ScriptError:
        return
    assert split_script(joined(once)) == once


class Work:
    """Counts the characters that are read."""

    def __init__(self) -> None:
        self.characters = 0

    def pattern(self, pattern: re.Pattern[str], *, scans: bool) -> Any:
        """Return ``pattern``, counted. One that ``scans`` reads all the rest before it fails."""
        work = self

        class Counted:
            def match(self, text: str, begin: int = 0, *end: int) -> re.Match[str] | None:
                match = pattern.match(text, begin, *end)
                failed = len(text) - begin if scans else 1
                work.characters += match.end() - begin if match else failed
                return match

            def __getattr__(self, name: str) -> Any:
                return getattr(pattern, name)

        return Counted()

    def text(self, text: str) -> str:
        work = self

        class Counted(str):
            __slots__ = ()

            def find(self, *args: Any) -> int:
                found = super().find(*args)
                last = found if found >= 0 else (args[2] if len(args) > 2 else len(self))
                work.characters += 1 + last - (args[1] if len(args) > 1 else 0)
                return found

            def rfind(self, *args: Any) -> int:
                found = super().rfind(*args)
                work.characters += 1 + args[2] - max(found, args[1])
                return found

            def count(self, *args: Any) -> int:
                work.characters += 1 + args[2] - args[1]
                return super().count(*args)

            def __getitem__(self, place: Any) -> str:
                part = super().__getitem__(place)
                work.characters += len(part)
                return part

        return Counted(text)


_PIECES = ["SELECT 1;", "SELECT 1;\n", "-- x\n", "#\n", "/* ; */", "/*\n/*! x */", "$a$ ", "use x ", "use x\n", " x"]
_PIECES += [
    "/*! /* */ */;",
    "/*! ",
    "/*! x */",
    "/*/*! x */",
    "DELIMITER // ; DELIMITER ; //",
    "DELIMITER ;\n",
    "d DELIMITER",
]
_PIECES += "x ';' '\\' '' \" `;` ` ; -- /* */ - / * \\N \\g $$ $ \\'".split()


@pytest.mark.parametrize("piece", [*_PIECES, "\n"])
@pytest.mark.parametrize("head", ["", "x", "/*! ", "/*! \n", "'", "/*", "DELIMITER ;;\n"])
def test_every_character_is_looked_at_a_few_times(piece: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    for name in ("_SPACE", "_DELIMITER_WORD", "_COMMAND"):
        monkeypatch.setattr(splitter, name, work.pattern(getattr(splitter, name), scans=False))
    strings = {key: work.pattern(pattern, scans=True) for key, pattern in splitter._STRINGS.items()}
    monkeypatch.setattr(splitter, "_STRINGS", strings)
    comments = {key: work.pattern(pattern, scans=True) for key, pattern in splitter._COMMENTS.items()}
    monkeypatch.setattr(splitter, "_COMMENTS", comments)

    class Counting(splitter._Splitter):
        def _set_delimiter(self, delimiter: str) -> None:
            super()._set_delimiter(delimiter)
            self._to_special = work.pattern(self._to_special, scans=True)

        def split(self) -> Any:
            self._text = work.text(self._text)
            return super().split()

    text = head + piece * 400
    with contextlib.suppress(ScriptError):
        Counting(text, True).split()
    assert work.characters <= 16 * len(text) + 100
