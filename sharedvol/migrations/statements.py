"""What kind of statement it is: what a kill leaves of it, and what a later session must do before going on.

Everything here errs on the side of "not known": then a half-applied file is refused, not gone on with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sharedvol.errors import ScriptError
from sharedvol.migrations.script import Statement, split_script

_CONDITIONAL: Final = re.compile(r"/\*M?!\d*\s*")
_WORDS: Final = re.compile(r"[\s(]*([A-Za-z_]+)(?:\s+([A-Za-z_]+))?(?:\s+([A-Za-z_]+))?")
_STORED_PROGRAM: Final = re.compile(r"\b(?:PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE)\b", re.IGNORECASE)
_ENDS_WITH_END: Final = re.compile(r"\bEND(?:\s+`?\w+`?)?\s*\Z", re.IGNORECASE)
# MySQL manual, "Statements That Cause an Implicit Commit".
_IMPLICIT_COMMIT: Final = frozenset(
    "ALTER ANALYZE CACHE CHANGE CHECK CREATE DROP FLUSH GRANT INSTALL OPTIMIZE RENAME REPAIR RESET REVOKE STOP "
    "TRUNCATE UNINSTALL UNLOCK".split()
)
_TRANSACTION: Final = frozenset("START COMMIT ROLLBACK SAVEPOINT RELEASE".split())
_READING: Final = frozenset("SELECT SHOW DESC DESCRIBE EXPLAIN HELP VALUES WITH".split())
_WRITING: Final = frozenset("INSERT UPDATE DELETE REPLACE LOAD WITH".split())
_COMPOSED: Final = frozenset("CALL EXECUTE BEGIN DO IF LOOP WHILE REPEAT CASE FOR IMPORT LOAD".split())
_IDEMPOTENT: Final = re.compile(
    r"\s*(?:CREATE\s+OR\s+REPLACE\b|DROP\s+\w+\s+IF\s+EXISTS\b[^,]*\Z|TRUNCATE\b)", re.IGNORECASE
)
_USER_VARIABLE: Final = re.compile(r"(?<![@\w])@(?!@)[\w$.]+|(?<![@\w])@(?!@)[`'\"][^`'\"]+[`'\"]")
_FROM_THE_PAST: Final = re.compile(
    r"\b(?:LAST_INSERT_ID|ROW_COUNT|FOUND_ROWS)\s*\(|@@(?:session\.|local\.)?(?:identity|last_insert_id|insert_id)",
    re.IGNORECASE,
)


def words(text: str) -> tuple[str, str, str]:
    """The first three words of a statement, in capitals; those within ``/*! */`` count."""
    first, second, third = _first_words(text)
    return first.upper(), second.upper(), third.upper()


def heading(text: str) -> str:
    """What to call a statement in a message, such as ``ALTER TABLE orders``: never its values."""
    return " ".join(word for word in _first_words(text) if word)


def _first_words(text: str) -> tuple[str, str, str]:
    match = _WORDS.match(_CONDITIONAL.sub(" ", text, count=1) if text.startswith("/*") else text)
    first, second, third = match.groups("") if match else ("", "", "")
    return first, second, third


def commits_implicitly(text: str) -> bool:
    """Whether the server commits when it runs the statement, so that it is done for good."""
    first, second, _ = words(text)
    return first in _IMPLICIT_COMMIT and not (first in ("CREATE", "DROP") and second == "TEMPORARY")


def locks_tables(text: str) -> bool:
    """Whether other tables, such as that of our marks, are out of reach from here on."""
    return words(text)[:2] in (("LOCK", "TABLES"), ("LOCK", "TABLE"))


def unlocks_tables(text: str) -> bool:
    """The end of `locks_tables`."""
    return words(text)[:2] in (("UNLOCK", "TABLES"), ("UNLOCK", "TABLE"))


def sets_session(text: str) -> bool:
    """Whether the statement only prepares the session for those behind it."""
    first, second, _ = words(text)
    return first == "USE" or (first == "SET" and second not in ("GLOBAL", "PERSIST", "PERSIST_ONLY", "PASSWORD"))


def is_repeatable(text: str) -> bool:
    """Whether running it once more, when it may have run already, comes to the same."""
    first, second, _ = words(text)
    if sets_session(text) or first in _TRANSACTION or (first == "BEGIN" and second in ("", "WORK")):
        return True
    if first in _READING:
        return "(" not in text and not re.search(r"\bINTO\b|\bFOR\s+UPDATE\b", text, re.IGNORECASE)
    return _IDEMPOTENT.match(text) is not None


def is_whole(text: str) -> bool:
    """Whether an error leaves nothing of the statement, in tables of a transactional engine.

    MySQL manual, "Atomic Data Definition Statement Support". A CALL is not, nor is a text of several
    statements that one delimiter ends, nor a DROP of several tables on MariaDB.
    """
    first, _, _ = words(text)
    if first in _COMPOSED or (first == "DROP" and "," in text):
        return False
    if first in ("CREATE", "ALTER"):
        return True  # semicolons in the body of a routine are its own
    try:
        return len(split_script(text)) <= 1
    except ScriptError:
        return False


def writes_rows(text: str) -> bool:
    """Whether its wholeness depends on the engines of the tables."""
    return words(text)[0] in _WRITING


def can_be_followed(text: str) -> bool:
    """Whether ``;`` and another statement may be sent behind it in one packet, changing nothing.

    MySQL stores the ``;`` as part of a routine with a body of one statement; and a conditional comment may
    be nothing at all to this server, which does not take a ``;`` behind nothing.
    """
    if text.startswith("/*"):
        return False
    if words(text)[0] in ("CREATE", "ALTER") and _STORED_PROGRAM.search(text):
        return _ENDS_WITH_END.search(text) is not None
    return True


def obstacle(statements: Sequence[Statement], done: int) -> str | None:
    """Why another session cannot go on behind statement number ``done``; None if it can.

    What a session has and another has not: temporary tables, table locks, prepared statements, the values
    of ``@variables`` and of LAST_INSERT_ID() and its like.
    """
    variables: set[str] = set()
    prepared: dict[str, int] = {}
    for number, statement in enumerate(statements[:done], 1):
        first, second, third = words(statement.text)
        if first == "CREATE" and second == "TEMPORARY":
            return f"statement {number} made a temporary table, which is gone"
        if first == "PREPARE":
            prepared[second] = number
        elif first in ("DEALLOCATE", "DROP") and second == "PREPARE":
            prepared.pop(third, None)
        if not is_replayed(statement.text):
            variables |= _variables(statement.text)
    if prepared:
        return f"statement {min(prepared.values())} is a PREPARE whose prepared statement is gone"
    past = True
    for number, statement in enumerate(statements[done:], done + 1):
        text = statement.text
        target = re.match(r"\s*SET\s+(@[\w$.]+)\s*:?=", text, re.IGNORECASE)
        used = _variables(text[target.end() :] if target else text) & variables
        if used:
            return f"statement {number} needs the value that {min(used)} had in the earlier session"
        if past and _FROM_THE_PAST.search(text):
            return f"statement {number} needs what the statement before it left in the earlier session"
        if target:
            variables.discard(target.group(1).lower())
        if words(text)[0] in ("INSERT", "REPLACE"):
            past = False
    return None


def is_replayed(text: str) -> bool:
    """Whether a later session runs it again before it goes on: settings whose value cannot be another."""
    return sets_session(text) and "(" not in text and not _FROM_THE_PAST.search(text)


def _variables(text: str) -> set[str]:
    return {name.lower().translate({ord(quote): None for quote in "`'\""}) for name in _USER_VARIABLE.findall(text)}
