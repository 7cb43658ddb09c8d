"""Taking an SQL script apart into statements, by the rules of the stock MySQL and MariaDB clients.

The rules are those of the client in batch mode (MySQL manual, "mysql Client Commands" and "Comments"), which
is what authors of migration files have in mind:

- a statement ends at the delimiter, wherever that stands outside strings, quoted identifiers and comments;
- ``DELIMITER x`` at the start of a line, between statements, sets another one, in any case of letters;
- ``#`` and ``--`` with white space behind it start a comment to the end of the line, and between statements
  ``--`` alone does, too; ``/* */`` is a comment; ``/*! */``, ``/*M! */`` and the hint ``/*+ */`` are not;
- ``\\g`` and ``\\G`` end a statement as the delimiter does; ``\\N`` is a value; no other backslash stands
  outside a string;
- a line ends at LF or CR LF, inside strings too, and is sent with LF.

Comments inside a statement stay where they are, since a routine's belong to it; those around it go.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import Final, NoReturn

from sharedvol.errors import ScriptError

_MAX_DELIMITER: Final = 15  # the client cuts a longer one silently; here it is an error
_SPACE: Final = re.compile(r"[ \t\n\v\f\r]+")
_SQLITE_LEAD: Final = re.compile(r"\A(?:\s+|--[^\n]*|/\*.*?\*/)+", re.DOTALL)
_DELIMITER_WORD: Final = re.compile(r"delimiter(?![^ \t\n\v\f\r])", re.IGNORECASE)
# Possessive: a quote that nothing closes is found in one pass, without trying anew from each escape.
_STRINGS: Final = {
    (quote, escapes): re.compile(
        rf"{quote}(?:[^{quote}\\]++|\\.)*+{quote}" if escapes and quote != "`" else rf"{quote}[^{quote}]*+{quote}",
        re.DOTALL,
    )
    for quote in "'\"`"
    for escapes in (True, False)
}
_NAMES: Final = {"'": "string", '"': "string", "`": "quoted identifier"}

# The client's own commands: those that mean nothing to a server. True where arguments may follow.
_CLIENT_COMMANDS: Final = {
    "charset": True,
    "clear": False,
    "connect": True,
    "edit": False,
    "ego": False,
    "exit": False,
    "go": False,
    "help": True,
    "nopager": False,
    "notee": False,
    "nowarning": False,
    "pager": True,
    "print": False,
    "prompt": True,
    "query_attributes": True,
    "quit": False,
    "rehash": False,
    "resetconnection": False,
    "source": True,
    "status": False,
    "system": True,
    "tee": True,
    "warnings": False,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a script.

    Attributes:
        text: what is sent to the server, without its delimiter.
        line: where it begins in the script, counted from 1.
    """

    text: str
    line: int


def split_script(text: str, *, backslash_escapes: bool = True) -> list[str]:
    """The statements of a script, as the stock client would send them.

    ::

        >>> split_script("SELECT 1; -- one\\nDELIMITER //\\nSELECT ';' //")
        ['SELECT 1', "SELECT ';'"]

    Args:
        text: the whole script.
        backslash_escapes: False for a server whose sql_mode has NO_BACKSLASH_ESCAPES.

    Raises:
        ScriptError: a string, quoted identifier or comment that does not end; a last statement without the
            delimiter that the script has set; a client command that is not SQL, such as ``source``; a NUL.
    """
    return [statement.text for statement in parse_script(text, backslash_escapes=backslash_escapes)]


def parse_script(text: str, *, backslash_escapes: bool = True) -> list[Statement]:
    """As `split_script`, with the line of each statement."""
    return _Splitter(text, backslash_escapes).split()


class _Splitter:
    def __init__(self, text: str, backslash_escapes: bool) -> None:
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._escapes = backslash_escapes
        self._found: list[Statement] = []
        self._fresh = True  # nothing but white space so far on this line
        self._counted = (0, 1)  # a position, and its line: lines are counted once, from one statement to the next
        if (nul := self._text.find("\0")) >= 0:
            self._fail(nul, "a NUL character cannot be part of a statement")
        self._set_delimiter(";")

    def split(self) -> list[Statement]:
        at, end = 0, len(self._text)
        while at < end:
            at = self._between(at)
        return self._found

    def _set_delimiter(self, delimiter: str) -> None:
        self._delimiter = delimiter
        # What may end, or hide the end of, a statement; the delimiter goes before all but a backslash.
        # What may end a statement or hide its end. A backslash goes before the delimiter, the rest after it.
        special = (r"\\", re.escape(delimiter), "['\"`]", r"#|--(?=[ \t\n\v\f\r]|\Z)", r"/\*", r"\*/")
        first = re.escape(delimiter[0]) + r"\\'\"`#\-/*"
        ordinary = f"(?:[^{first}]++|(?!{'|'.join(special)}).)*+"  # many at once: twice as fast as a search
        self._to_special = re.compile(ordinary + "(?:" + "|".join(f"({one})" for one in special) + ")", re.DOTALL)

    def _between(self, at: int) -> int:
        """Step over one thing between statements, or one statement; where it ends."""
        text = self._text
        if space := _SPACE.match(text, at):
            self._fresh = self._fresh or "\n" in space.group()
            return space.end()
        if self._fresh and (behind := self._command_line(at)) is not None:
            return behind
        self._fresh = False
        if _DELIMITER_WORD.match(text, at):
            return self._late_delimiter(at)
        if text.startswith(self._delimiter, at):
            return at + len(self._delimiter)
        if text.startswith(("#", "--"), at):
            return self._end_of_line(at)
        if text.startswith("/*", at) and not self._is_kept(at):
            return self._end_of_comment(at)
        return self._statement(at)

    def _statement(self, begin: int) -> int:
        """Take the statement that begins here; where the next may begin."""
        text, at = self._text, begin
        end = begin  # behind the last thing that is not a comment: comments at the end are not sent
        conditional: int | None = None  # where the ``/*!`` that is open began
        while match := self._to_special.match(text, at):
            special = match.start(match.lastindex or 0)
            if not _blank(text, at, special):
                end = special
            backslash, delimiter, quote, line_comment, comment, comment_end = match.groups()
            if delimiter:
                if conditional is not None:
                    self._fail(conditional, f"the comment '/*!' is not closed before the delimiter {delimiter!r}")
                return self._take(begin, end, match.end())
            if backslash and conditional is None:
                if text.startswith(("g", "G"), match.end()):
                    return self._take(begin, end, match.end() + 1)
                if not text.startswith("N", match.end()):
                    self._fail(special, f"the client command {text[special : special + 2]!r} is not SQL: leave it out")
                at = end = match.end() + 1
            elif quote:
                at = end = self._end_of_string(special, quote)
            elif line_comment:
                at = self._end_of_line(special)
            elif comment and not self._is_kept(special):
                at = self._end_of_comment(special)
                if conditional is not None:
                    # The client's rule for a comment in a conditional one: both end together.
                    at = end = self._end_of_comment(special, at)
                    conditional = None
            elif comment and text.startswith("+", match.end()):
                at = end = self._end_of_comment(special)
            else:
                if comment:
                    conditional = special
                elif comment_end:
                    conditional = None
                at = end = match.end()
        if not _blank(text, at, len(text)):
            end = len(text)
        if conditional is not None:
            self._fail(conditional, "the comment '/*!' is not closed")
        if self._delimiter != ";":
            self._fail(begin, f"the last statement does not end with its delimiter {self._delimiter!r}")
        return self._take(begin, end, len(text))

    def _take(self, begin: int, end: int, behind: int) -> int:
        statement = self._text[begin:end].rstrip(" \t\n\v\f\r")
        if statement:
            self._found.append(Statement(statement, self._line(begin)))
        return behind

    # Commands of the client.

    def _command_line(self, at: int) -> int | None:
        """Obey a client command on this line; where the line ends, or None if it is SQL."""
        behind = self._end_of_line(at)
        line = self._text[at:behind]
        if _DELIMITER_WORD.match(line):
            self._obey_delimiter(at, line)
            return behind
        if self._delimiter in line or "\\g" in line:
            return None  # the client, too, takes such a line for SQL
        name, *arguments = line.lower().split(maxsplit=1)
        if name == "use" and arguments:
            self._found.append(Statement(line.rstrip(), self._line(at)))
            return behind
        if name in _CLIENT_COMMANDS and (_CLIENT_COMMANDS[name] or not arguments):
            self._fail(at, f"the client command {name!r} is not SQL: leave it out")
        return None

    def _late_delimiter(self, at: int) -> int:
        """``DELIMITER`` behind something else on its line: the client obeys it if the old delimiter is there."""
        behind = self._end_of_line(at)
        line = self._text[at:behind]
        if self._delimiter not in line:
            self._fail(at, "DELIMITER must stand at the start of its line")
        self._obey_delimiter(at, line)
        return behind

    def _obey_delimiter(self, at: int, line: str) -> None:
        argument = line[len("delimiter") :].strip(" \t\v\f\r")
        if argument[:1] in ("'", '"', "`") and argument:
            delimiter = argument[1:].partition(argument[0])[0]
        else:
            delimiter = _SPACE.split(argument, maxsplit=1)[0]
        if not delimiter:
            self._fail(at, "DELIMITER must be followed by the delimiter, as in 'DELIMITER //'")
        if "\\" in delimiter:
            self._fail(at, "a delimiter cannot contain a backslash")
        if len(delimiter.encode()) > _MAX_DELIMITER:
            self._fail(at, f"a delimiter has at most {_MAX_DELIMITER} bytes")
        self._set_delimiter(delimiter)

    # Where things end.

    def _end_of_line(self, at: int) -> int:
        end = self._text.find("\n", at)
        return len(self._text) if end < 0 else end

    def _end_of_comment(self, opened: int, at: int | None = None) -> int:
        """Behind the next ``*/``; for a comment that was ``opened`` before ``at``, the one after that."""
        end = self._text.find("*/", opened + 2 if at is None else at)
        if end < 0:
            self._fail(opened, "the comment '/*' is not closed")
        return end + 2

    def _end_of_string(self, opened: int, quote: str) -> int:
        match = _STRINGS[quote, self._escapes].match(self._text, opened)
        if match is None:
            self._fail(opened, f"the {_NAMES[quote]} that opens with {quote} is not closed")
        return match.end()

    def _is_kept(self, at: int) -> bool:
        """Whether the ``/*`` here means something to a server: a condition or a hint."""
        return self._text.startswith(("!", "+", "M!"), at + 2)

    def _line(self, at: int) -> int:
        position, line = self._counted
        line += self._text.count("\n", position, at)
        self._counted = (at, line)
        return line

    def _fail(self, at: int, what: str) -> NoReturn:
        raise ScriptError(what, self._text.count("\n", 0, at) + 1)


def _blank(text: str, begin: int, end: int) -> bool:
    """Whether there is nothing but white space from ``begin`` to ``end``."""
    space = _SPACE.match(text, begin, end)
    return begin >= end or (space is not None and space.end() == end)


def split_sqlite(text: str) -> list[Statement]:
    """The statements of an SQLite script: SQLite itself knows where one ends, triggers included.

    Raises:
        ScriptError: the last one does not end.
    """
    found: list[Statement] = []
    begin = at = 0
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    while (semicolon := text.find(";", at)) >= 0:
        at = semicolon + 1
        piece = text[begin:at]
        if sqlite3.complete_statement(piece):
            bare = _SQLITE_LEAD.sub("", piece)
            if bare != ";":
                found.append(Statement(bare[:-1].rstrip(), text.count("\n", 0, at - len(bare)) + 1))
            begin = at
    rest = _SQLITE_LEAD.sub("", text[begin:])
    if rest:
        line = text.count("\n", 0, len(text) - len(rest)) + 1
        if not sqlite3.complete_statement(rest + "\n;"):
            raise ScriptError("a string, comment or trigger is not closed", line)
        found.append(Statement(rest.rstrip(), line))
    return found
