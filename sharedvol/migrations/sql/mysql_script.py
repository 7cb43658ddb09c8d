r"""Split an SQL script into statements, by the rules of the stock MySQL and MariaDB clients.

The rules are those of the client in batch mode (MySQL manual, "mysql Client Commands" and "Comments"), because authors
of migration files expect them:

- A statement ends at the delimiter outside strings, quoted identifiers and comments.
- ``DELIMITER x`` at the start of a line, between statements, sets another delimiter. Its case does not matter.
- ``#``, and ``--`` before white space, start a comment to the end of the line. Between statements ``--`` alone does so.
- ``/* */`` is a comment. ``/*! */`` and ``/*M! */`` are not. Within a statement the hint ``/*+ */`` is not.
- ``$$ $$`` and ``$tag$ $tag$`` quote, as in MySQL 9.
- ``\g`` and ``\G`` end a statement as the delimiter does. ``\N`` is a value. Any other backslash outside a string is an
  error.
- A line ends at LF or CR LF, also inside strings, and is sent with LF.

Comments inside a statement stay, because a routine's comments belong to it. Comments around a statement are removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from sharedvol.errors import ScriptError

_MAX_DELIMITER: Final = 15  # the client silently truncates a longer one, so here it is an error
_SPACE: Final = re.compile(r"[ \t\n\v\f\r]+")
_DELIMITER_WORD: Final = re.compile(r"delimiter(?![^ \t\n\v\f\r])", re.IGNORECASE | re.ASCII)
# No group here or below is possessive, because Python before 3.11.5 matches possessive groups with alternatives wrongly
# (gh-106052). None has to be: each text matches in one way only, so an unclosed quote is found in one pass.
_STRINGS: Final = {
    (quote, escapes): re.compile(
        rf"{quote}(?:[^{quote}\\]++|\\.)*{quote}" if escapes and quote != "`" else rf"{quote}[^{quote}]*+{quote}",
        re.DOTALL,
    )
    for quote in "'\"`"
    for escapes in (True, False)
}
# The client's rules within a comment. A ``*/`` closes the ``/*!`` before it on its line, so that part of a dump can be
# commented out. It also closes a ``/*!`` before the comment. In ``/*/`` the star does not count twice.
_TO_STAR: Final = r"(?:[^*\n]++|\*(?!/))*(?:\*(?=/)|(?=\n|\Z))"
_COMMENT: Final = rf"(?:/\*!{_TO_STAR}|/\*(?!M?!)|[^*/]++|\*(?!/)|/(?!\*)|/(?=\*M!))*\*/"
_COMMENTS: Final = {
    False: re.compile(_COMMENT, re.DOTALL),
    True: re.compile(_TO_STAR + _COMMENT, re.DOTALL),
}
_NAMES: Final = {"'": "string", '"': "string", "`": "quoted identifier"}

# Commands of the client, which a server does not know. Those of the second set take arguments.
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
        text: what is sent to the server, without the delimiter.
        line: the line of the script where it begins, counted from 1.
    """

    text: str
    line: int


def split_script(text: str, *, backslash_escapes: bool = True) -> list[str]:
    r"""Return the statements of a script, as the stock client would send them.

    ::

        >>> split_script("SELECT 1; -- one\nDELIMITER //\nSELECT ';' //")
        ['SELECT 1', "SELECT ';'"]

    Args:
        text: the whole script.
        backslash_escapes: False for a server whose sql_mode has NO_BACKSLASH_ESCAPES.

    Raises:
        ScriptError: a string, quoted identifier or comment is not closed; the last statement does not end with the
            delimiter that the script set; the script has a client command that is not SQL, such as ``source``, or a
            NUL.
    """
    return [statement.text for statement in parse_script(text, backslash_escapes=backslash_escapes)]


def parse_script(text: str, *, backslash_escapes: bool = True) -> list[Statement]:
    """Split as `split_script` does, and return the line of each statement."""
    return _Splitter(text, backslash_escapes).split()


def plain(text: str) -> str:
    """Return ``text`` without a byte order mark, with lines that end in LF."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


class _Splitter:
    def __init__(self, text: str, backslash_escapes: bool) -> None:
        self._text = plain(text)
        self._escapes = backslash_escapes
        self._found: list[Statement] = []
        self._fresh = True  # only white space so far on this line
        self._line_rest = (0, -1)  # a range without an end of a line, so that each line is searched once
        self._counted = (0, 1)  # a position and its line, so that each line is counted once
        self._sent = 0  # the end of what is sent of the statement: without the comments at its end
        self._conditional: int | None = None  # where the open ``/*!`` began
        self._nested_until = 0  # where the first line of that ``/*!`` ends
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
        # What may end a statement or hide its end. The backslash is tried before the delimiter, the rest after it.
        line_comment = r"#|--(?=[ \t\n\v\f\r]|\Z)"
        special = (r"\\", re.escape(delimiter), "['\"`]", line_comment, r"/\*", r"\*/", r"(?<![\w$])\$\w*\$")
        first = re.escape(delimiter[0]) + r"\\'\"`#\-/*$"
        # One match over many ordinary characters is twice as fast as a search.
        ordinary = f"(?:[^{first}]++|(?!{'|'.join(special)})[{first}])*"
        self._to_special = re.compile(ordinary + "(?:" + "|".join(f"({one})" for one in special) + ")", re.DOTALL)

    def _between(self, at: int) -> int:
        """Step over one item between statements, or over one statement. Return where it ends."""
        text = self._text
        if space := _SPACE.match(text, at):
            self._fresh = self._fresh or "\n" in space.group()
            return space.end()
        if self._fresh and (after := self._command_line(at)) is not None:
            return after
        self._fresh = False
        if _DELIMITER_WORD.match(text, at):
            return self._late_delimiter(at)
        if text.startswith(self._delimiter, at):
            return at + len(self._delimiter)
        if text.startswith(("#", "--"), at):
            return self._end_of_line(at)
        if text.startswith("/*", at) and not self._is_conditional(at):
            return self._end_of_comment(at)  # also a hint, which has no effect between statements
        return self._statement(at)

    def _statement(self, begin: int) -> int:
        """Take the statement that begins here. Return where the next may begin."""
        text, at = self._text, begin
        self._sent, self._conditional, self._nested_until = begin, None, 0
        while match := self._to_special.match(text, at):
            special = match.start(match.lastindex or 0)
            if not _blank(text, at, special):
                self._sent = special
            backslash, delimiter, quote, line_comment, comment, _, dollar = match.groups()
            if delimiter:
                self._refuse_open_conditional(f" before the delimiter {delimiter!r}")
                return self._take(begin, self._sent, match.end())
            if backslash and self._conditional is None and text.startswith(("g", "G"), match.end()):
                return self._take(begin, self._sent, match.end() + 1)
            if line_comment:
                at = self._end_of_line(special)
            elif comment:
                at = self._comment_in_statement(special)
            elif quote:
                at = self._sent = self._end_of_string(special, quote)
            elif dollar:
                at = self._sent = self._end_of_dollars(special, dollar)
            elif backslash:
                at = self._sent = self._end_of_backslash(special)
            else:
                at = self._sent = self._end_of_conditional(special)
        if not _blank(text, at, len(text)):
            self._sent = len(text)
        self._refuse_open_conditional("")
        if self._delimiter != ";":
            self._fail(begin, f"the last statement does not end with its delimiter {self._delimiter!r}")
        return self._take(begin, self._sent, len(text))

    def _comment_in_statement(self, opened: int) -> int:
        """Step over a comment, or over the mark that opens a conditional one."""
        text, after = self._text, opened + 2
        if self._is_conditional(opened):
            self._conditional = opened
            self._nested_until = 0 if text.startswith("M", after) else self._end_of_line(opened)
            self._sent = after
            return after
        if text.startswith("+", after):
            self._sent = self._end_of_comment(opened)
            return self._sent
        if self._conditional is not None and opened < self._nested_until:
            self._conditional = None
            self._sent = self._end_of_comment(opened, in_conditional=True)
            return self._sent
        return self._end_of_comment(opened)

    def _refuse_open_conditional(self, where: str) -> None:
        if self._conditional is not None:
            self._fail(self._conditional, f"the comment '/*!' is not closed{where}")

    def _take(self, begin: int, end: int, after: int) -> int:
        statement = self._text[begin:end].rstrip(" \t\n\v\f\r")
        if statement:
            command = _command(statement)
            if command and command not in ("help", "use"):
                self._refuse_command(begin, command)
            if statement.lower() == "delimiter":
                self._apply_delimiter(begin, statement)
            self._found.append(Statement(statement, self._line(begin)))
        return after

    # Commands of the client.

    def _command_line(self, at: int) -> int | None:
        """Run a client command on this line. Return where the line ends, or None if it is SQL."""
        after = self._end_of_line(at)
        line = self._text[at:after]
        if _DELIMITER_WORD.match(line):
            self._apply_delimiter(at, line)
            return after
        if self._delimiter in line or "\\g" in line:
            return None  # the client also reads such a line as SQL
        command = _command(line)
        if command == "use":
            self._found.append(Statement(line.rstrip(), self._line(at)))
            return after
        if command:
            self._refuse_command(at, command)
        return None

    def _refuse_command(self, at: int, command: str) -> NoReturn:
        self._fail(at, f"the client command {command!r} is not SQL: leave it out")

    def _late_delimiter(self, at: int) -> int:
        """Apply a ``DELIMITER`` in the middle of a line, as the client does if the old delimiter follows."""
        delimiter = self._delimiter
        end = self._text.find(delimiter, at)
        line = self._text[at:end]
        if end < 0 or "\n" in line:
            self._fail(at, "DELIMITER must stand at the start of its line")
        self._apply_delimiter(at, line)
        return end + len(delimiter)

    def _apply_delimiter(self, at: int, line: str) -> None:
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
        begin, end = self._line_rest
        if not begin <= at <= end:
            end = self._text.find("\n", at)
            end = len(self._text) if end < 0 else end
            self._line_rest = (at, end)
        return end

    def _end_of_backslash(self, at: int) -> int:
        # mariadb-dump begins with /*M!999999\- enable the sandbox mode */
        if not self._text.startswith("N" if self._conditional is None else ("N", "-"), at + 1):
            self._fail(at, f"the client command {self._text[at : at + 2]!r} is not SQL: leave it out")
        return at + 2

    def _end_of_conditional(self, at: int) -> int:
        """Step over ``*/``, or over its star alone: in ``2*/* two */2`` the slash opens a comment."""
        if self._conditional is None:
            return at + 1
        self._conditional = None
        return at + 2

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
        """Return whether some server runs what is in the comment here."""
        return self._text.startswith(("!", "M!"), at + 2)

    def _line(self, at: int) -> int:
        position, line = self._counted
        line += self._text.count("\n", position, at)
        self._counted = (at, line)
        return line

    def _fail(self, at: int, what: str) -> NoReturn:
        raise ScriptError(what, self._text.count("\n", 0, at) + 1)


def _blank(text: str, begin: int, end: int) -> bool:
    """Return whether there is only white space from ``begin`` to ``end``."""
    space = _SPACE.match(text, begin, end)
    return begin >= end or (space is not None and space.end() == end)


def _command(text: str) -> str | None:
    """Return the client command in ``text``, as the client reads it, or None if it is SQL."""
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
