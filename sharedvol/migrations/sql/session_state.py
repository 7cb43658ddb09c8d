"""What another session must do, and cannot do, before it goes on with a file that stopped half-way.

Everything here errs on the side of "cannot": then a half-applied file is refused, not gone on with.
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
    """Whether a later session runs it again before it goes on: settings whose value cannot be another."""
    doubtful = _OF_THE_MOMENT.search(text) or _LAST_ID.search(text) or _LOOKS_BACK.search(text)
    of_one_transaction = words(text)[:2] == ("SET", "TRANSACTION")
    return sets_session(text) and not doubtful and not of_one_transaction and calls_only(text, SAME_TODAY)


def obstacle(statements: Sequence[Statement], done: int) -> str | None:
    """Why another session cannot go on behind statement number ``done``; None if it can.

    What a session has and another has not: temporary tables, prepared statements, locks, settings and
    ``@variables`` that cannot be set again, the values of LAST_INSERT_ID() and its like.
    """
    before, after = [one.text for one in statements[:done]], [one.text for one in statements[done:]]
    if not before or not after:
        return None
    return _gone(before) or _missed(before, after)


def _gone(before: Sequence[str]) -> str | None:
    """What the statements left in their session that cannot be had again, but for the values of variables."""
    prepared: dict[str, int] = {}
    for number, text in enumerate(before, 1):
        first, second, _ = words(text)
        dynamic = first in ("PREPARE", "EXECUTE", "SET") and _MAKES_TEMPORARY.search(text)
        if dynamic or (first == "CREATE" and TEMPORARY.match(text)):
            return f"statement {number} made a temporary table, which is gone"
        if first in ("SELECT", "SET", "DO") and _USER_LOCK.search(text):
            return f"statement {number} took a lock, which is gone"
        if first == "SET" and _FOR_THE_NEXT.search(text):
            return f"statement {number} was meant for the one behind it"
        if match := _PREPARED.match(text):
            dropped, name = match.group(1), match.group(2).strip("`").lower()
            if dropped:
                prepared.pop(name, None)
            else:
                prepared[name] = number
        sets = first == "SET" and second not in ("PASSWORD", "DEFAULT", "STATEMENT", "TRANSACTION")
        lost = sets and not is_replayed(text) and not _sets_variables_only(text)
        if lost and (sets_session(text) or "," in text):
            return f"statement {number} changed the session in a way that may come out differently now"
    if prepared:
        return f"statement {min(prepared.values())} is a PREPARE whose prepared statement is gone"
    return None


def _missed(before: Sequence[str], after: Sequence[str]) -> str | None:
    """What of the earlier session's values the statements ``after`` need."""
    touched: set[str] = set()
    known: set[str] = set()  # what the replayed statements will give the same values again
    server_changed = any(words(text)[0] == "SET" and SETS_SERVER.search(text) for text in before)
    for number, text in enumerate(before, 1):
        assigned, used = _variables(text)
        touched |= assigned | used
        if is_replayed(text) and used <= known and not (server_changed and "@@" in text):
            known |= assigned
        elif is_replayed(text) and not _sets_variables_only(text):
            return f"statement {number} set the session to a value that may be another now"
        else:
            known -= assigned | used if words(text)[0] == "SET" else assigned
    inserted = any(_may_insert(text) for text in before)
    for number, text in enumerate(after, len(before) + 1):
        assigned, used = _variables(text)
        if words(text)[0] == "CALL":
            used = touched  # of which the routine may read any
        elif words(text)[0] != "SET":
            used = used | (assigned & touched)  # SELECT INTO that finds no row leaves the old value
        if used - known:
            return f"statement {number} needs the value that {min(used - known)} had in the earlier session"
        known |= assigned
        if STORED_PROGRAM.match(text):
            continue
        if (inserted and _LAST_ID.search(text)) or (number == len(before) + 1 and _LOOKS_BACK.search(text)):
            return f"statement {number} needs what the statement before it left in the earlier session"
    return None


def _may_insert(text: str) -> bool:
    first, second, _ = words(text)
    copies = first == "CREATE" and re.search(r"\bSELECT\b", text, re.IGNORECASE)
    return first in WRITING | COMPOSED or (first, second) == ("SET", "STATEMENT") or bool(copies)


def _sets_variables_only(text: str) -> bool:
    return _SET_FIRST.match(text) is not None and _SET_SYSTEM.search(text) is None


def _variables(text: str) -> tuple[set[str], set[str]]:
    """The ``@variables`` that a statement gives values, and those whose values it needs."""
    first, _, _ = words(text)
    program = STORED_PROGRAM.match(text)
    if OF_ACCOUNTS.match(text) or (program and program.group(1).upper() != "EVENT"):
        return set(), set()  # their @ is that of an account, or runs later
    text = _DEFINER.sub(" ", text)
    if first not in ("SET", "PREPARE", "EXECUTE", "CALL"):  # whose strings may become statements
        bare = _STRINGS.sub(lambda match: match.group(1) or " ", text)
        # What cannot stand outside strings: then they were others, as under NO_BACKSLASH_ESCAPES.
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
