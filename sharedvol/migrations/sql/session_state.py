"""Decide what another session must restore before it resumes a half-applied file, and whether it can.

In doubt the answer is that it cannot. Then a half-applied file is refused instead of resumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.statements import (
    ACCOUNT,
    COMPOSED,
    GAP,
    NOT_CODE,
    OF_ACCOUNTS,
    QUOTED,
    SAME_TODAY,
    SETS_SERVER,
    STORED_PROGRAM,
    TEMPORARY,
    WRITING,
    calls_only,
    pattern,
    sets_session,
    words,
)

_OWN: Final = r"@@(?:(?:session|local)\s*\.\s*)?"
_OF_THE_MOMENT: Final = pattern(
    r"\b(?:CURRENT_(?:TIMESTAMP|DATE|TIME|USER|ROLE)|LOCALTIME|LOCALTIMESTAMP|UTC_(?:DATE|TIME|TIMESTAMP)|FROM"
    rf"|(?:NEXT|PREVIOUS)\s+VALUE)\b|{_OWN}(?:timestamp|rand_seed|warning_|error_|pseudo_)"
)
_LAST_ID: Final = pattern(rf"\bLAST_INSERT_ID\s*\(|{_OWN}(?:identity|last_insert_id|insert_id)\b")
_LOOKS_BACK: Final = pattern(r"\b(?:ROW_COUNT|FOUND_ROWS)\s*\(|\bGET\s+(?:CURRENT\s+)?DIAGNOSTICS\b")
_FOR_THE_NEXT: Final = pattern(r"(?<![^@]@)\b(?:INSERT_ID|LAST_INSERT_ID|IDENTITY|RAND_SEED[12])\s*:?=")
_USER_LOCK: Final = pattern(r"\bGET_LOCK\s*\(")
_MAKES_TEMPORARY: Final = pattern(r"\bTEMPORARY\s+TABLE\b")
_PREPARED: Final = pattern(rf"{GAP}*+(?:PREPARE|(DEALLOCATE|DROP){GAP}++PREPARE){GAP}++(`[^`]+`|[\w$]+)")
_VARIABLE: Final = r"(?<![@`'\"])@(?:[\w$.]+|`[^`]+`|'[^']+'|\"[^\"]+\")"
_USER_VARIABLE: Final = re.compile(_VARIABLE)
_DEFINER: Final = pattern(rf"\bDEFINER\s*=\s*{ACCOUNT}")
_STRINGS: Final = pattern(rf"(@{QUOTED})|{NOT_CODE}")
_SET_FIRST: Final = pattern(rf"{GAP}*+SET{GAP}++({_VARIABLE})\s*:?=")
_SET_MORE: Final = pattern(rf",\s*({_VARIABLE})\s*:?=")
_SET_SYSTEM: Final = pattern(r",\s*(?:@@|[A-Za-z_])[\w\s.`]*:?=")
_INTO: Final = pattern(rf"\bINTO\s+({_VARIABLE}(?:\s*,\s*{_VARIABLE})*)|({_VARIABLE})\s*:=")


def is_replayed(text: str) -> bool:
    """Return whether a later session runs the statement again before it resumes: a setting with a fixed value."""
    doubtful = _OF_THE_MOMENT.search(text) or _LAST_ID.search(text) or _LOOKS_BACK.search(text)
    of_one_transaction = words(text)[:2] == ("SET", "TRANSACTION")
    return sets_session(text) and not doubtful and not of_one_transaction and calls_only(text, SAME_TODAY)


def obstacle(statements: Sequence[Statement], done: int) -> str | None:
    """Return why another session cannot resume after statement number ``done``; None if it can.

    Another session lacks the temporary tables, prepared statements, locks and values such as LAST_INSERT_ID(), and some
    settings and ``@variables`` cannot be set again.
    """
    before, after = [one.text for one in statements[:done]], [one.text for one in statements[done:]]
    if not before or not after:
        return None
    return _lost_state(before) or _missing_value(before, after)


def _lost_state(before: Sequence[str]) -> str | None:
    """Return what the statements left in their session that cannot be restored, apart from values of variables."""
    prepared: dict[str, int] = {}
    for number, text in enumerate(before, 1):
        if reason := _lost_by(text):
            return f"statement {number} {reason}"
        if match := _PREPARED.match(text):
            dropped, name = match.group(1), match.group(2).strip("`").lower()
            if dropped:
                prepared.pop(name, None)
            else:
                prepared[name] = number
    if prepared:
        return f"statement {min(prepared.values())} is a PREPARE whose prepared statement was lost"
    return None


def _lost_by(text: str) -> str | None:
    """Return what one statement left in its session that cannot be restored."""
    first, second, _ = words(text)
    dynamic = first in ("PREPARE", "EXECUTE", "SET") and _MAKES_TEMPORARY.search(text)
    if dynamic or (first == "CREATE" and TEMPORARY.match(text)):
        return "made a temporary table, which no longer exists"
    if first in ("SELECT", "SET", "DO") and _USER_LOCK.search(text):
        return "took a lock, which was lost"
    if first != "SET":
        return None
    if _FOR_THE_NEXT.search(text):
        return "was meant for the statement after it"
    sets = second not in ("PASSWORD", "DEFAULT", "STATEMENT", "TRANSACTION")
    lost = sets and not is_replayed(text) and not _sets_variables_only(text)
    if lost and (sets_session(text) or "," in text):
        return "changed the session in a way that may have another effect now"
    return None


def _missing_value(before: Sequence[str], after: Sequence[str]) -> str | None:
    """Return why the statements ``after`` need a value of the earlier session that cannot be set again."""
    touched: set[str] = set()
    known: set[str] = set()  # variables that the replayed statements set to the same values again
    server_changed = any(words(text)[0] == "SET" and SETS_SERVER.search(text) for text in before)
    for number, text in enumerate(before, 1):
        assigned, used = _variables(text)
        touched |= assigned | used
        replayed = is_replayed(text)
        if replayed and used <= known and not (server_changed and "@@" in text):
            known |= assigned
        elif replayed and not _sets_variables_only(text):
            return f"statement {number} set the session to a value that may differ now"
        else:
            known -= assigned | used if words(text)[0] == "SET" else assigned
    inserted = any(_may_insert(text) for text in before)
    for number, text in enumerate(after, len(before) + 1):
        assigned, used = _needed_variables(text, touched)
        if used - known:
            return f"statement {number} needs the value that {min(used - known)} had in the earlier session"
        known |= assigned
        if _needs_previous(text, inserted=inserted, is_next=number == len(before) + 1):
            return f"statement {number} needs what the statement before it left in the earlier session"
    return None


def _needed_variables(text: str, touched: set[str]) -> tuple[set[str], set[str]]:
    """Return what `_variables` does, with the variables that a statement may read without naming them."""
    assigned, used = _variables(text)
    if words(text)[0] == "CALL":
        return assigned, touched  # the routine may read any of them
    if words(text)[0] != "SET":
        used = used | (assigned & touched)  # a SELECT INTO that finds no row keeps the old value
    return assigned, used


def _needs_previous(text: str, *, inserted: bool, is_next: bool) -> bool:
    """Return whether a statement reads the result of an earlier one, such as ROW_COUNT()."""
    if STORED_PROGRAM.match(text):
        return False
    return bool((inserted and _LAST_ID.search(text)) or (is_next and _LOOKS_BACK.search(text)))


def _may_insert(text: str) -> bool:
    first, second, _ = words(text)
    copies = first == "CREATE" and re.search(r"\bSELECT\b", text, re.IGNORECASE)
    return first in WRITING | COMPOSED or (first, second) == ("SET", "STATEMENT") or bool(copies)


def _sets_variables_only(text: str) -> bool:
    return _SET_FIRST.match(text) is not None and _SET_SYSTEM.search(text) is None


def _variables(text: str) -> tuple[set[str], set[str]]:
    """Return the ``@variables`` that a statement assigns, and those that it reads."""
    first, _, _ = words(text)
    program = STORED_PROGRAM.match(text)
    if OF_ACCOUNTS.match(text) or (program and program.group(1).upper() != "EVENT"):
        return set(), set()  # the @ belongs to an account, or the program runs later
    text = _DEFINER.sub(" ", text)
    if first not in ("SET", "PREPARE", "EXECUTE", "CALL"):  # strings of the others may become statements
        bare = _STRINGS.sub(lambda match: match.group(1) or " ", text)
        # A quote outside strings means that they were read wrongly, as under NO_BACKSLASH_ESCAPES.
        text = text if re.search(r"['\"]|\\(?!N)", bare) else bare
    if first == "SET":
        patterns = [_SET_FIRST] if "(" in text else [_SET_FIRST, _SET_MORE]
    elif first in ("LOAD", "CALL", "EXECUTE", "GET"):
        names = _names(_USER_VARIABLE.findall(text))
        return names, names if first == "EXECUTE" else set()
    else:
        patterns = [_INTO]
    assigned: list[str] = []
    for assigning in patterns:
        for match in assigning.finditer(text):
            assigned += _USER_VARIABLE.findall(" ".join(filter(None, match.groups())))
        text = assigning.sub(" ", text)
    return _names(assigned), _names(_USER_VARIABLE.findall(text))


def _names(found: Iterable[str]) -> set[str]:
    return {name.lower().translate({ord(quote): None for quote in "`'\""}) for name in found}
