"""Split an SQLite script into statements. SQLite itself says where each one ends."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql.mysql_script import Statement, plain

_SQLITE_LEAD: Final = re.compile(r"(?:\s++|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*\*/)*", re.DOTALL)
_TO_SEMICOLON: Final = re.compile(
    r"""(?:[^;'"`\[/-]++|'[^']*+'|"[^"]*+"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*\*/|-(?!-)|/(?!\*))*;""",
    re.DOTALL,
)


def split_sqlite(text: str) -> list[Statement]:
    """Return the statements of an SQLite script, which may create triggers.

    Raises:
        ScriptError: the last statement does not end, or the script has a NUL.
    """
    text = plain(text)
    if (nul := text.find("\0")) >= 0:
        raise ScriptError("a NUL character cannot be part of a statement", text.count("\n", 0, nul) + 1)
    found: list[Statement] = []
    begin = at = 0
    line = 1
    while True:
        first = _end_of_lead(text, begin)
        line += text.count("\n", begin, first)
        # Check only semicolons outside strings. To check all of them takes hours for a large INSERT of texts.
        while match := _TO_SEMICOLON.match(text, at):
            at = match.end()
            if sqlite3.complete_statement(text[first:at]):
                break
        else:
            break
        if first < at - 1:
            found.append(Statement(text[first : at - 1].rstrip(), line))
        line += text.count("\n", first, at)
        begin = at
    rest = text[first:].rstrip()
    if rest:
        if not sqlite3.complete_statement(rest + "\n;"):
            raise ScriptError("a string, comment or trigger is not closed", line)
        found.append(Statement(rest, line))
    return found


def _end_of_lead(text: str, begin: int) -> int:
    """Return where the comments and the white space at ``begin`` end."""
    match = _SQLITE_LEAD.match(text, begin)
    return begin if match is None else match.end()
