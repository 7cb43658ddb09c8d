"""Check that the ledger can hold the names of migrations and tell them apart."""

from __future__ import annotations

from collections.abc import Collection

from sharedvol.database.connection import as_text
from sharedvol.errors import LedgerError
from sharedvol.migrations.ledger import Ledger


def check_names(ledger: Ledger, names: Collection[str]) -> None:
    """Refuse names that the ledger's column cannot hold or would take for one.

    Raises:
        LedgerError: names them.
    """
    if ledger.database.kind != "mysql" or not names:
        return
    charset, collation = _column_of_names(ledger)
    if charset == "binary":
        return
    for name in _unfit(ledger, names, charset):
        raise LedgerError(
            f"the ledger cannot hold the name {name!r}, whose characters its column does not have: rename the file, or "
            "give the column the character set utf8mb4"
        )
    for one, other in _clashes(ledger, names, charset, collation):
        raise LedgerError(
            f"the ledger cannot tell {one!r} from {other!r}: its column compares without case or accents, so the "
            "second would be run and not be recorded; rename one of them, or say so in renames"
        )


def _column_of_names(ledger: Ledger) -> tuple[str, str]:
    """Return the character set and the collation of the ledger's names."""
    rows = ledger.database.query(f"SHOW FULL COLUMNS FROM {ledger.table} WHERE Field = 'filename'")
    collation = as_text(rows[0][2]) if rows and rows[0][2] else "binary"
    return collation.split("_")[0], collation


def _unfit(ledger: Ledger, names: Collection[str], charset: str) -> list[str]:
    """Return the names that the column's character set cannot hold. They would run and not be recorded."""
    if charset == "utf8mb4":
        return []
    values = {f"n{number}": name for number, name in enumerate(sorted(names))}
    table = " UNION ALL ".join(f"SELECT :{key} AS name" for key in values)
    rows = ledger.database.query(
        f"SELECT name FROM ({table}) AS names WHERE HEX(CONVERT(CONVERT(name USING {charset}) USING utf8mb4)) "
        "<> HEX(CONVERT(name USING utf8mb4))",
        **values,
    )
    return [as_text(name) for (name,) in rows]


def _clashes(ledger: Ledger, names: Collection[str], charset: str, collation: str) -> list[tuple[str, str]]:
    """Return pairs of different names that are one in the schema's collation, which may ignore case and accents."""
    values = {f"n{number}": name for number, name in enumerate(sorted(names))}
    table = " UNION ALL ".join(
        f"SELECT CONVERT(:{key} USING {charset}) COLLATE {collation} AS name, {number} AS number"
        for number, key in enumerate(values)
    )
    ordered = list(values.values())
    rows = ledger.database.query(
        f"SELECT MIN(number), MAX(number) FROM ({table}) AS names GROUP BY name HAVING COUNT(*) > 1", **values
    )
    return [(ordered[int(first)], ordered[int(last)]) for first, last in rows]
