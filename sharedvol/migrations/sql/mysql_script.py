"""Taking an SQL script apart into statements, by the rules of the stock MySQL and MariaDB clients.

The rules are those of the client in batch mode (MySQL manual, "mysql Client Commands" and "Comments"), which
is what authors of migration files have in mind:

- a statement ends at the delimiter, wherever that stands outside strings, quoted identifiers and comments;
- ``DELIMITER x`` at the start of a line, between statements, sets another one, in any case of letters;
- ``#`` and ``--`` with white space behind it start a comment to the end of the line, and between statements
  ``--`` alone does, too; ``/* */`` is a comment; ``/*! */``, ``/*M! */`` and, within a statement, the hint
  ``/*+ */`` are not;
- ``$$ $$`` and ``$tag$ $tag$`` quote, as MySQL 9 has it;
- ``\\g`` and ``\\G`` end a statement as the delimiter does; ``\\N`` is a value; no other backslash stands
  outside a string;
- a line ends at LF or CR LF, inside strings too, and is sent with LF.

Comments inside a statement stay where they are, since a routine's belong to it; those around it go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from sharedvol.errors import ScriptError

_MAX_DELIMITER: Final = 15  # the client cuts a longer one silently; here it is an error
_SPACE: Final = re.compile(r"[ \t\n\v\f\r]+")
_DELIMITER_WORD: Final = re.compile(r"delimiter(?![^ \t\n\v\f\r])", re.IGNORECASE | re.ASCII)
# No group here or below is possessive, as Python before 3.11.5 loses its way in one that has a choice in it
# (gh-106052); none need be, as each text is matched in one way only: what nothing closes is found out in one pass.
_STRINGS: Final = {
    (quote, escapes): re.compile(
        rf"{quote}(?:[^{quote}\\]++|\\.)*{quote}" if escapes and quote != "`" else rf"{quote}[^{quote}]*+{quote}",
        re.DOTALL,
    )
    for quote in "'\"`"
    for escapes in (True, False)
}
# The client's rules for what is in a comment: a ``*/`` that has a ``/*!`` before it on its line belongs to that, so
# that part of a dump can be commented out, and so does one to a ``/*!`` before the comment; a ``/*`` is no half of
# ``/*/``.
_TO_STAR: Final = r"(?:[^*\n]++|\*(?!/))*(?:\*(?=/)|(?=\n|\Z))"
_COMMENT: Final = rf"(?:/\*!{_TO_STAR}|/\*(?!M?!)|[^*/]++|\*(?!/)|/(?!\*)|/(?=\*M!))*\*/"
_COMMENTS: Final = {
    False: re.compile(_COMMENT, re.DOTALL),
    True: re.compile(_TO_STAR + _COMMENT, re.DOTALL),
}
_NAMES: Final = {"'": "string", '"': "string", "`": "quoted identifier"}

# The client's own commands: those that mean nothing to a server. The second set takes arguments.
_COMMANDS: Final = frozenset(
    "clear edit ego exit go nopager notee nowarning print quit rehash resetconnection sandbox "
    "ssl_session_data_print status warnings".split()
)
_COMMANDS_WITH_ARGUMENTS: Final = frozenset(
    "? charset connect help pager prompt query_attributes source system tee".split()
)
_COMMAND: Final = re.compile(r"(\?|[a-z_]+)(?:[ \t]+|\Z)", re.IGNORECASE | re.ASCII)


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


def plain(text: str) -> str:
    """``text`` without a byte order mark, its lines ending in LF."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


class _Splitter:
    def __init__(self, text: str, backslash_escapes: bool) -> None:
        self._text = plain(text)
        self._escapes = backslash_escapes
        self._found: list[Statement] = []
        self._fresh = True  # nothing but white space so far on this line
        self._looked_up = (0, -1)  # from where to where there is no end of a line: looked for once, too
        self._counted = (0, 1)  # a position, and its line: lines are counted once
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
        # What may end a statement or hide its end. A backslash goes before the delimiter, the rest after it.
        line_comment = r"#|--(?=[ \t\n\v\f\r]|\Z)"
        special = (r"\\", re.escape(delimiter), "['\"`]", line_comment, r"/\*", r"\*/", r"(?<![\w$])\$\w*\$")
        first = re.escape(delimiter[0]) + r"\\'\"`#\-/*$"
        # Many at once: twice as fast as a search.
        ordinary = f"(?:[^{first}]++|(?!{'|'.join(special)})[{first}])*"
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
        if text.startswith("/*", at) and not self._is_conditional(at):
            return self._end_of_comment(at)  # a hint, too: here it has nothing to be about
        return self._statement(at)

    def _statement(self, begin: int) -> int:
        """Take the statement that begins here; where the next may begin."""
        text, at = self._text, begin
        end = begin  # behind the last thing that is not a comment: comments at the end are not sent
        conditional: int | None = None  # where the ``/*!`` that is open began
        nesting = 0  # where its first line ends
        while match := self._to_special.match(text, at):
            special = match.start(match.lastindex or 0)
            if not _blank(text, at, special):
                end = special
            backslash, delimiter, quote, line_comment, comment, _, dollar = match.groups()
            if delimiter:
                if conditional is not None:
                    self._fail(conditional, f"the comment '/*!' is not closed before the delimiter {delimiter!r}")
                return self._take(begin, end, match.end())
            if backslash:
                if conditional is None and text.startswith(("g", "G"), match.end()):
                    return self._take(begin, end, match.end() + 1)
                # mariadb-dump begins with /*M!999999\- enable the sandbox mode */
                if not text.startswith("N" if conditional is None else ("N", "-"), match.end()):
                    self._fail(special, f"the client command {text[special : special + 2]!r} is not SQL: leave it out")
                at = end = match.end() + 1
            elif quote:
                at = end = self._end_of_string(special, quote)
            elif dollar:
                at = end = self._end_of_dollars(special, dollar)
            elif line_comment:
                at = self._end_of_line(special)
            elif comment and text.startswith("+", match.end()):
                at = end = self._end_of_comment(special)
            elif comment and not self._is_conditional(special):
                if special < nesting and conditional is not None:
                    at = end = self._end_of_comment(special, in_conditional=True)
                    conditional = None
                else:
                    at = self._end_of_comment(special)
            else:
                if comment:
                    conditional = special
                    nesting = 0 if text.startswith("M", match.end()) else self._end_of_line(special)
                elif conditional is None:
                    at = end = special + 1  # a star: the slash may open a comment, as in ``2*/* two */2``
                    continue
                else:
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
            command = _command(statement)
            if command and command not in ("help", "use"):
                self._refuse_command(begin, command)
            if statement.lower() == "delimiter":
                self._obey_delimiter(begin, statement)
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
        command = _command(line)
        if command == "use":
            self._found.append(Statement(line.rstrip(), self._line(at)))
            return behind
        if command:
            self._refuse_command(at, command)
        return None

    def _refuse_command(self, at: int, command: str) -> NoReturn:
        self._fail(at, f"the client command {command!r} is not SQL: leave it out")

    def _late_delimiter(self, at: int) -> int:
        """``DELIMITER`` behind something else on its line: the client obeys it if the old delimiter is there."""
        end = self._text.find(self._delimiter, at)
        line = self._text[at:end]
        if end < 0 or "\n" in line:
            self._fail(at, "DELIMITER must stand at the start of its line")
        behind = end + len(self._delimiter)
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
        if not delimiter.isascii():
            self._fail(at, "the client never finds a delimiter that is not ASCII")
        if len(delimiter) > _MAX_DELIMITER:
            self._fail(at, f"a delimiter has at most {_MAX_DELIMITER} characters")
        self._set_delimiter(delimiter)

    # Where things end.

    def _end_of_line(self, at: int) -> int:
        begin, end = self._looked_up
        if not begin <= at <= end:
            end = self._text.find("\n", at)
            end = len(self._text) if end < 0 else end
            self._looked_up = (at, end)
        return end

    def _end_of_comment(self, opened: int, *, in_conditional: bool = False) -> int:
        match = _COMMENTS[in_conditional].match(self._text, opened + 2)
        if match is None:
            self._fail(opened, "the comment '/*' is not closed")
        return match.end()

    def _end_of_string(self, opened: int, quote: str) -> int:
        match = _STRINGS[quote, self._escapes].match(self._text, opened)
        if match is None:
            self._fail(opened, f"the {_NAMES[quote]} that opens with {quote} is not closed")
        return match.end()

    def _end_of_dollars(self, opened: int, tag: str) -> int:
        end = self._text.find(tag, opened + len(tag))
        if end < 0:
            self._fail(opened, f"the text that opens with {tag} is not closed")
        return end + len(tag)

    def _is_conditional(self, at: int) -> bool:
        """Whether what is in the comment here means something to some server."""
        return self._text.startswith(("!", "M!"), at + 2)

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


def _command(text: str) -> str | None:
    """The client command that ``text`` is, as the client reads it; None if it is SQL."""
    match = _COMMAND.match(text)
    if match is None:
        return None
    name = match.group(1).lower()
    if name in _COMMANDS_WITH_ARGUMENTS:
        return name
    if name == "use" or name in _COMMANDS:
        arguments = text[match.end() :].strip()
        return name if bool(arguments) == (name == "use") else None
    return None
