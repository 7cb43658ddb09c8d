"""Classify SQL statements: what a kill leaves of one, and what a later session needs before it can resume.

In doubt every function answers "not known". Then a half-applied file is refused instead of resumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql.mysql_script import split_script


def pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern that ignores case and whose dot matches line ends."""
    return re.compile(text, re.IGNORECASE | re.DOTALL)


# What may be between words. Of a conditional comment only its marks, unless no server ever runs its content.
# Possessive wherever it is used, because its parts could match the same text in many ways.
GAP: Final = r"(?:\s|/\*M?!999999.*?\*/|/\*M?!\d*|\*/|/\*(?!M?!).*?\*/|\#[^\n]*\n|--\s[^\n]*\n)"
_REPLACE: Final = rf"(?:OR{GAP}++REPLACE{GAP}++)?"
QUOTED: Final = r"(?:`[^`]*`|'[^']*'|\"[^\"]*\")"
ACCOUNT: Final = rf"(?:{QUOTED}|[\w$]+)(?:\s*\(\s*\)|\s*@\s*(?:{QUOTED}|[\w$.%-]+))?"
_NAME: Final = r"`?([A-Za-z_][\w$]*)`?"
_WORDS: Final = pattern(rf"(?:\(|{GAP})*+([A-Za-z_]+)(?:{GAP}++{_NAME})?(?:{GAP}++{_NAME})?")
TEMPORARY: Final = pattern(rf"{GAP}*+(?:CREATE|DROP){GAP}++{_REPLACE}TEMPORARY\b")
STORED_PROGRAM: Final = pattern(
    rf"{GAP}*+(?:CREATE|ALTER){GAP}++{_REPLACE}(?:DEFINER\s*=\s*{ACCOUNT}{GAP}++)?(?:AGGREGATE{GAP}++)?"
    r"(PROCEDURE|FUNCTION|TRIGGER|PACKAGE|EVENT)\b"
)
OF_ACCOUNTS: Final = pattern(rf"{GAP}*+(?:GRANT|REVOKE|(?:CREATE|ALTER|DROP|RENAME){GAP}++{_REPLACE}(?:USER|ROLE))\b")
_NAMES_A_PROGRAM: Final = pattern(r"\b(?:PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE)\b")
NOT_CODE: Final = r"'(?:[^'\\]++|\\.)*'|\"(?:[^\"\\]++|\\.)*\"|`[^`]*+`|/\*(?!M?!|\+).*?\*/|\#[^\n]*+|--(?=\s)[^\n]*+"
_BLOCKS: Final = pattern(rf"{NOT_CODE}|(;)|\b(BEGIN|CASE|END)\b(?:\s+(IF|LOOP|WHILE|REPEAT|FOR|CASE)\b)?")
_LABEL: Final = re.compile(r"(?:\s+`?\w+`?)?[\s*/]*")
# MySQL manual, "Statements That Cause an Implicit Commit".
_IMPLICIT_COMMIT: Final = frozenset(
    "ALTER ANALYZE CACHE CHANGE CHECK CREATE DROP FLUSH GRANT INSTALL OPTIMIZE RENAME REPAIR RESET REVOKE STOP "
    "TRUNCATE UNINSTALL UNLOCK".split()
)
_ANALYZE_TABLE: Final = frozenset("TABLE TABLES LOCAL NO_WRITE_TO_BINLOG".split())
_TRANSACTION: Final = frozenset("START COMMIT ROLLBACK SAVEPOINT RELEASE".split())
_READING: Final = frozenset("SELECT SHOW DESC DESCRIBE EXPLAIN HELP VALUES WITH".split())
WRITING: Final = frozenset("INSERT UPDATE DELETE REPLACE LOAD WITH".split())
COMPOSED: Final = frozenset("CALL EXECUTE BEGIN DO IF LOOP WHILE REPEAT CASE FOR IMPORT LOAD".split())
_IDEMPOTENT: Final = pattern(
    r"\s*(?:CREATE\s+OR\s+REPLACE\b(?!.*\bEVENT\b)|DROP\s+\w+\s+IF\s+EXISTS\b[^,]*\Z|TRUNCATE\b)"
)
# A conditional comment may turn it into another statement on another server.
_DOUBTFUL_READING: Final = pattern(r"[(]|/\*|\bINTO\b|\bFOR\s+UPDATE\b|\bVALUE\s+FOR\b")

# SET STATEMENT ... FOR runs a statement. The server keeps the values of the others.
_NOT_OF_THE_SESSION: Final = frozenset("GLOBAL PERSIST PERSIST_ONLY PASSWORD DEFAULT STATEMENT".split())
_SERVER: Final = "(?:GLOBAL|PERSIST|PERSIST_ONLY)"
SETS_SERVER: Final = pattern(rf"(?<!@)\b{_SERVER}\b|@@{_SERVER}\s*\.[\s\w.`]+:?=")
_CALL: Final = re.compile(r"(\.\s*)?([\w$`]*)\s*\(")
SAME_TODAY: Final = frozenset(
    "ABS CAST CEIL CEILING CHAR_LENGTH CONCAT CONCAT_WS CONVERT COALESCE FLOOR GREATEST IF IFNULL INSTR LCASE LEAST "
    "LEFT LENGTH LOCATE LOWER LPAD LTRIM MOD NULLIF QUOTE REPEAT REPLACE RIGHT ROUND RPAD RTRIM SUBSTR SUBSTRING TRIM "
    "UCASE UPPER".split()
) | {""}
_WITHOUT_EFFECT: Final = SAME_TODAY | frozenset(
    "AND AS AVG COUNT CURDATE CURRENT_TIMESTAMP DATABASE EXISTS GROUP_CONCAT IN MAX MIN NOW ON OR SCHEMA SUM "
    "UNIX_TIMESTAMP USER UUID VERSION WHERE".split()
)


def words(text: str) -> tuple[str, str, str]:
    """Return the first three words of a statement in capitals, including those within ``/*! */``."""
    first, second, third = _first_words(text)
    return first.upper(), second.upper(), third.upper()


def heading(text: str) -> str:
    """Return the name of a statement for a message, such as ``ALTER TABLE orders``. It never contains values."""
    return " ".join(word for word in _first_words(text) if word)


def _first_words(text: str) -> tuple[str, str, str]:
    match = _WORDS.match(text)
    first, second, third = match.groups("") if match else ("", "", "")
    return first, second, third


def commits_implicitly(text: str) -> bool:
    """Return whether the server commits when it runs the statement, so that a ROLLBACK cannot undo it."""
    first, second, _ = words(text)
    if first == "ANALYZE" and second not in _ANALYZE_TABLE:
        return False  # MariaDB's ANALYZE of a statement
    return first in _IMPLICIT_COMMIT and not TEMPORARY.match(text)


def locks_tables(text: str) -> bool:
    """Return whether later statements cannot use other tables, such as the table of our marks."""
    return words(text)[:2] in (("LOCK", "TABLES"), ("LOCK", "TABLE"))


def unlocks_tables(text: str) -> bool:
    """Return whether the statement ends the effect of one for which `locks_tables` is true."""
    return words(text)[:2] in (("UNLOCK", "TABLES"), ("UNLOCK", "TABLE"))


def sets_session(text: str) -> bool:
    """Return whether the statement only prepares the session for later statements."""
    first, second, _ = words(text)
    return first == "USE" or (first == "SET" and second not in _NOT_OF_THE_SESSION and not SETS_SERVER.search(text))


def is_repeatable(text: str) -> bool:
    """Return whether running the statement again, although it may have run already, gives the same result."""
    first, second, _ = words(text)
    if sets_session(text):
        return calls_only(text, _WITHOUT_EFFECT)
    if first in _TRANSACTION or (first == "BEGIN" and second in ("", "WORK")):
        return True
    if first in _READING:
        return not _DOUBTFUL_READING.search(text)
    return _IDEMPOTENT.match(text) is not None


def is_whole(text: str) -> bool:
    """Return whether an error leaves nothing of the statement, in tables of a transactional engine.

    See the MySQL manual, "Atomic Data Definition Statement Support". The exceptions are a CALL, a text of several
    statements with one delimiter and, on MariaDB, a DROP of several tables or a statement about several users.
    """
    first, second, _ = words(text)
    if first in COMPOSED or (first, second) == ("SET", "STATEMENT") or (first == "DROP" and "," in text):
        return False
    if OF_ACCOUNTS.match(text) and first not in ("GRANT", "REVOKE"):
        return "," not in text
    if STORED_PROGRAM.match(text) and _is_block(text):
        return True  # its semicolons belong to its body
    try:
        return len(split_script(text)) <= 1
    except ScriptError:
        return False


def writes_rows(text: str) -> bool:
    """Return whether the statement writes rows, so that the tables' engines decide whether an error undoes it."""
    return words(text)[0] in WRITING


def can_be_followed(text: str) -> bool:
    """Return whether ``;`` and another statement may follow it in the same packet without changing it.

    MySQL stores the ``;`` as part of a routine whose body is one statement. A conditional comment may be empty to this
    server, which refuses a ``;`` after an empty statement.
    """
    if text.startswith("/*"):
        return False
    if words(text)[0] in ("CREATE", "ALTER") and _NAMES_A_PROGRAM.search(text):
        return _is_block(text)
    return True


def _is_block(text: str) -> bool:
    """Return whether the text ends with the END of its first BEGIN, which is that of a routine's body."""
    opened = semicolons = 0
    for match in _BLOCKS.finditer(text):
        semicolon, word, of = match.groups()
        word = (word or "").upper()
        semicolons += semicolon is not None
        if word == "BEGIN" or (word == "CASE" and opened):
            opened += 1
        elif word == "CASE" or (word == "END" and not opened) or (semicolon and not opened):
            return False
        elif word == "END" and (of is None or of.upper() == "CASE"):
            opened -= 1
            if not opened:
                return semicolons > 0 and _LABEL.fullmatch(text, match.end()) is not None
    return False


def calls_only(text: str, functions: Iterable[str]) -> bool:
    """Return whether a statement calls only some of ``functions``, given in capitals."""
    return all(not of and name.upper() in functions for of, name in _CALL.findall(text)) and "VALUE FOR" not in (
        " ".join(text.upper().split())
    )
