"""Queries that read the catalog page by page, each in the order of an index.

A page is read in two steps, because not every database uses an index for a condition such as ``(a, b) > (x, y)``. The
first step reads rows that are newer than the last page, the second the rest of those with the time of its last row.
Each step names its index. The planner chooses by statistics, and a wrong choice sorts all rows for each page.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.catalog.schema import CONTAINER, KIND, WHEN, WHO, collected

if TYPE_CHECKING:
    from sharedvol_sidecar.catalog.catalog import Filters

COLUMNS = tuple(collected.columns.keys())
KEY, COLLECTED_AT = COLUMNS.index("key"), COLUMNS.index("collected_at")
"""The places of these columns in a row."""

_LARGEST = 2**63 - 1

Query = tuple[str, tuple[Any, ...]]
"""A statement in the driver's own style, and its parameters."""


class PageQueries:
    """Makes the queries for one connection.

    Args:
        dialect: of SQLAlchemy.
        indexes: the indexes that the table has. A catalog of an older release may have fewer. Then all rows are read in
            order, and those that do not match are left out.
    """

    def __init__(self, dialect: Any, indexes: Collection[str]) -> None:
        self._sqlite = dialect.name == "sqlite"
        self._mariadb = bool(getattr(dialect, "is_mariadb", False))
        self._indexes = indexes
        quote = dialect.identifier_preparer.quote
        self._key = quote("key")
        self._columns = ", ".join(map(quote, COLUMNS))
        self._mark = "?" if self._sqlite else "%s"

    def newer(self, filters: Filters, after: int | None, limit: int) -> Query:
        """Select rows that were collected later than ``after``, oldest first; rows of one time in any order."""
        where, values = self._where(filters, after)
        return (
            f"SELECT {self._columns} FROM {self._table(self._index(filters))}{where} "
            f"ORDER BY collected_at LIMIT {limit}",
            values,
        )

    def same_time(self, filters: Filters, when: int, after: str, limit: int) -> Query:
        """Select rows that were collected exactly at ``when``, ordered by key, after the key ``after``."""
        where, values = self._where(filters, None)
        join = "AND" if where else "WHERE"
        return (
            f"SELECT {self._columns} FROM {self._table(WHEN)}{where} "
            f"{join} collected_at = {self._mark} AND {self._key} > {self._mark} ORDER BY {self._key} LIMIT {limit}",
            (*values, when, after),
        )

    def boundary(self, filters: Filters, after: int | None, count: int) -> Query:
        """Select the time of the ``count``-th row that is newer than ``after``."""
        where, values = self._where(filters, after)
        return (
            f"SELECT collected_at FROM {self._table(self._index(filters))}{where} "
            f"ORDER BY collected_at LIMIT 1 OFFSET {count - 1}",
            values,
        )

    def sums(self, filters: Filters, after: int | None, last: int | None) -> Query:
        """Count the rows that are newer than ``after`` and not newer than ``last``, and sum their bytes."""
        where, values = self._where(filters, after)
        if last is not None:
            where += f"{' AND' if where else ' WHERE'} collected_at <= {self._mark}"
            values = (*values, last)
        return f"SELECT COUNT(*), COALESCE(SUM(size), 0) FROM {self._table(self._index(filters))}{where}", values

    def _index(self, filters: Filters) -> str:
        if filters.container is None:
            wanted = WHEN if filters.kind is None else KIND
        else:
            # On a server, WHO has only the beginnings of names, and MariaDB does not read rows in the order of it.
            wanted = CONTAINER if filters.kind is None or self._mariadb else WHO
        return wanted if wanted in self._indexes else WHEN

    def _table(self, index: str) -> str:
        if index not in self._indexes:
            return collected.name
        hint = f"INDEXED BY {index}" if self._sqlite else f"FORCE INDEX ({index})"
        return f"{collected.name} {hint}"

    def _where(self, filters: Filters, after: int | None) -> tuple[str, tuple[Any, ...]]:
        conditions = {
            "kind =": None if filters.kind is None else escape(filters.kind),
            "container =": None if filters.container is None else escape(filters.container),
            "collected_at >": after,
            "collected_at <": None if filters.until is None else _bounded(filters.until),
        }
        given = {condition: value for condition, value in conditions.items() if value is not None}
        words = " AND ".join(f"{condition} {self._mark}" for condition in given)
        return f" WHERE {words}" if words else "", tuple(given.values())


def lower_bound(filters: Filters) -> int | None:
    """Return the time after which the first page begins."""
    return None if filters.since is None else _bounded(filters.since - 1)


def _bounded(time_ns: int) -> int:
    """Return a time within the limits of a database, because a user may give any year."""
    return min(max(time_ns, -_LARGEST), _LARGEST)
