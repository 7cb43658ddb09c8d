"""What kind of statement it is: what a kill leaves of it, and what a later session must do before going on.

Everything here errs on the side of "not known": then a half-applied file is refused, not gone on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql.mysql_script import split_script


def pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


# What may stand between words; of a conditional comment only its marks, but for what no server ever obeys.
# Possessive wherever it is used: its parts could match the same text in many ways.
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
# A conditional comment may make it another statement on another server.
_DOUBTFUL_READING: Final = pattern(r"[(]|/\*|\bINTO\b|\bFOR\s+UPDATE\b|\bVALUE\s+FOR\b")

# SET STATEMENT ... FOR runs a statement, the others are kept by the server.
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
    """The first three words of a statement, in capitals; those within ``/*! */`` count."""
    first, second, third = _first_words(text)
    return first.upper(), second.upper(), third.upper()


def heading(text: str) -> str:
    """What to call a statement in a message, such as ``ALTER TABLE orders``: never its values."""
    return " ".join(word for word in _first_words(text) if word)


def _first_words(text: str) -> tuple[str, str, str]:
    match = _WORDS.match(text)
    first, second, third = match.groups("") if match else ("", "", "")
    return first, second, third


def commits_implicitly(text: str) -> bool:
    """Whether the server commits when it runs the statement, so that it is done for good."""
    first, second, _ = words(text)
    if first == "ANALYZE" and second not in _ANALYZE_TABLE:
        return False  # MariaDB's for a statement
    return first in _IMPLICIT_COMMIT and not TEMPORARY.match(text)


def locks_tables(text: str) -> bool:
    """Whether other tables, such as that of our marks, are out of reach from here on."""
    return words(text)[:2] in (("LOCK", "TABLES"), ("LOCK", "TABLE"))


def unlocks_tables(text: str) -> bool:
    """The end of `locks_tables`."""
    return words(text)[:2] in (("UNLOCK", "TABLES"), ("UNLOCK", "TABLE"))


def sets_session(text: str) -> bool:
    """Whether the statement only prepares the session for those behind it."""
    first, second, _ = words(text)
    return first == "USE" or (first == "SET" and second not in _NOT_OF_THE_SESSION and not SETS_SERVER.search(text))


def is_repeatable(text: str) -> bool:
    """Whether running it once more, when it may have run already, comes to the same."""
    first, second, _ = words(text)
    if sets_session(text):
        return calls_only(text, _WITHOUT_EFFECT)
    if first in _TRANSACTION or (first == "BEGIN" and second in ("", "WORK")):
        return True
    if first in _READING:
        return not _DOUBTFUL_READING.search(text)
    return _IDEMPOTENT.match(text) is not None


def is_whole(text: str) -> bool:
    """Whether an error leaves nothing of the statement, in tables of a transactional engine.

    MySQL manual, "Atomic Data Definition Statement Support". A CALL is not, nor is a text of several
    statements that one delimiter ends, nor, on MariaDB, a DROP of several tables or anything with several users.
    """
    first, second, _ = words(text)
    if first in COMPOSED or (first, second) == ("SET", "STATEMENT") or (first == "DROP" and "," in text):
        return False
    if OF_ACCOUNTS.match(text) and first not in ("GRANT", "REVOKE"):
        return "," not in text
    if STORED_PROGRAM.match(text) and _is_block(text):
        return True  # its semicolons are its own
    try:
        return len(split_script(text)) <= 1
    except ScriptError:
        return False


def writes_rows(text: str) -> bool:
    """Whether its wholeness depends on the engines of the tables."""
    return words(text)[0] in WRITING


def can_be_followed(text: str) -> bool:
    """Whether ``;`` and another statement may be sent behind it in one packet, changing nothing.

    MySQL stores the ``;`` as part of a routine with a body of one statement; and a conditional comment may
    be nothing at all to this server, which does not take a ``;`` behind nothing.
    """
    if text.startswith("/*"):
        return False
    if words(text)[0] in ("CREATE", "ALTER") and _NAMES_A_PROGRAM.search(text):
        return _is_block(text)
    return True


def _is_block(text: str) -> bool:
    """Whether it ends with the END of the first BEGIN in it, which is that of a routine's body."""
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
    return all(not of and name.upper() in functions for of, name in _CALL.findall(text)) and "VALUE FOR" not in (
        " ".join(text.upper().split())
    )
