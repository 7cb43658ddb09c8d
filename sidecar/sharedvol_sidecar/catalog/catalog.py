"""The catalog: one row for each collected file, even after a kill at any point.

A row is added after its file's final name is durable and before the claim is removed. A mover that is killed in between
leaves the claim. The next mover gives it the same name and so the same key, and the row stays one. Collecting never
depends on a row. So a lost catalog is no loss of files, and `rebuild` makes it again.

By default it is in SQLite next to the files, ``<destination>/.sharedvol/catalog.db``; with a URL in MariaDB or MySQL.
"""

from __future__ import annotations

import fnmatch
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sharedvol_sidecar.catalog.encoding import escape, key, unescape
from sharedvol_sidecar.catalog.pages import COLLECTED_AT, KEY, PageQueries, Query, lower_bound
from sharedvol_sidecar.catalog.schema import collected
from sharedvol_sidecar.catalog.session import CatalogSession
from sharedvol_sidecar.catalog.url import read_url
from sharedvol_sidecar.errors import CatalogError
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.private import PRIVATE, open_private

__all__ = ["Catalog", "CatalogError", "Filters", "Part", "Row"]

FILE = "catalog.db"

_PAGE = 1000
_SUMMED = 10_000  # rows whose bytes are summed by one query
_LARGEST = 2**63 - 1
_escape_again = functools.lru_cache(maxsize=256)(escape)


@dataclass(slots=True)
class Row:
    """A row of the catalog: one collected file.

    Attributes:
        path: its path in the destination, as `os.fsdecode` returns it.
        kind: ``results``, ``logs`` or another configured kind; empty if not known.
        container: the container's name; empty if not known.
        original: its path in the spool; empty if not known.
        size: the stored size, in bytes.
        sha256: the digest of the stored bytes, in hexadecimal; None if there is none.
        mtime_ns: when it was written, nanoseconds since 1970 (UTC).
        collected_at: when it was collected, nanoseconds since 1970 (UTC).
        encoding: ``gzip`` or ``zstd``; None if it is not compressed.
        original_size: the size before compression, in bytes.
    """

    path: str
    kind: str
    container: str
    original: str
    size: int
    sha256: str | None
    mtime_ns: int
    collected_at: int
    encoding: str | None = None
    original_size: int | None = None

    def __post_init__(self) -> None:
        # A file can have a time that does not fit into 64 bits of nanoseconds. Other files must still get their rows.
        if not -_LARGEST <= self.mtime_ns <= _LARGEST:
            self.mtime_ns = clamped(self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that rows have to meet; None for no condition.

    Attributes:
        kind: the kind.
        container: the container's name.
        name: a shell pattern for the file's name or, if it contains a slash, for the path.
        since: collected at this time or later, nanoseconds since 1970.
        until: collected before this time, nanoseconds since 1970.
        limit: the largest number of rows.
    """

    kind: str | None = None
    container: str | None = None
    name: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The sums of the rows of a period.

    Attributes:
        since: its first nanosecond since 1970; None for the beginning.
        until: the nanosecond after it; None for the end.
        files: the number of rows.
        bytes: the sum of their sizes.
    """

    since: int | None
    until: int | None
    files: int
    bytes: int


class Catalog:
    """The rows of one destination, on one connection for one thread. A forked child opens its own connection.

    The first call connects, and so does the first call after a failure. Several processes may use the same catalog.

    Args:
        url: of SQLAlchemy, ``mysql://…`` or ``sqlite:///…``; empty or None for the file in the destination.
        destination: the destination's root.
        create: create a missing catalog, which is an error otherwise.
        frozen: only read the file as it is: see `frozen`.

    Raises:
        ConfigError: the URL is not one of a catalog, or the destination's private directory is another user's.
        CatalogError: raised by every method if the database failed. Nothing was changed.
    """

    def __init__(
        self, url: str | None, destination: Directory | Path, *, create: bool = True, frozen: bool = False
    ) -> None:
        root = destination if isinstance(destination, Directory) else open_root(destination)
        if url:
            target = read_url(url)
        else:
            path = str(Path(root.shown).resolve() / PRIVATE / FILE)
            if create or root.inode(PRIVATE) is not None:
                open_private(root)
            if create:
                root.sync()  # a power cut could otherwise remove the directory and all rows
            target = sa.URL.create("sqlite", database=path)
        self._session = CatalogSession(target, create=create, frozen=frozen)

    @classmethod
    def open(cls, url: str | None, destination: Directory | Path, *, create: bool = True) -> Catalog:
        """Create the object and connect.

        Raises:
            CatalogError: it cannot be opened, or is of a newer version.
        """
        catalog = cls(url, destination, create=create)
        catalog._session.run(lambda connection: None, "open")
        return catalog

    @classmethod
    def frozen(cls, url: str | None, destination: Directory | Path) -> Catalog:
        """Open a catalog's file as it is, for reading on a full disk, where SQLite cannot open it otherwise.

        No other process may open it until `close`.

        Raises:
            CatalogError: it cannot be read, or another process has it open.
        """
        catalog = cls(url, destination, create=False, frozen=True)
        catalog._session.run(lambda connection: None, "open")
        return catalog

    @property
    def label(self) -> str:
        """Its name for messages, without a password."""
        return self._session.label

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows in one transaction that is durable on return. A row replaces an older one of its path."""
        self._batch([(self._session.statements.upsert, sorted(map(_values, rows), key=_first))])

    def remove(self, paths: Iterable[str]) -> None:
        """Delete the rows of these paths, whatever they say: for a final name that was removed."""
        self._batch([(self._session.statements.delete, sorted((key(path),) for path in paths))])

    def forget(self, rows: Iterable[Row]) -> None:
        """Delete exactly these rows. The row of a file that was collected meanwhile under the same name stays."""
        self._batch([(self._session.statements.delete_exact, [_exactly(row) for row in rows])])

    def amend(self, changes: Sequence[tuple[Row | None, Row]]) -> None:
        """Replace each first row by the second; None adds the second. A row that was added meanwhile stays."""
        old = [_exactly(before) for before, _ in changes if before is not None]
        new = [_values(after) for _, after in changes]
        self._batch([(self._session.statements.delete_exact, old), (self._session.statements.insert_new, new)])

    def rows(self, filters: Filters = Filters()) -> Iterator[Row]:
        """Yield matching rows, oldest first. They are read page by page, so other calls may come in between."""
        return islice(self._all(filters), filters.limit)

    def get(self, path: str) -> Row | None:
        """Return the row of a path, or None."""
        return self.known([path]).get(path)

    def known(self, paths: Sequence[str]) -> dict[str, Row]:
        """Return the rows of these paths, by path."""
        found: dict[str, Row] = {}
        for start in range(0, len(paths), _PAGE):
            keys = [key(path) for path in paths[start : start + _PAGE]]
            query = sa.select(collected).where(collected.c.key.in_(keys))
            found.update((row.path, row) for row in map(_row, self._fetch(query)))
        return found

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._fetch(sa.select(sa.func.count()).select_from(collected))[0][0])

    def total(self, filters: Filters) -> tuple[int, int]:
        """Return the number of matching rows and the sum of their sizes. ``name`` and ``limit`` are ignored."""
        files = size = 0
        for part in self.parts(filters):
            files, size = files + part.files, size + part.bytes
        return files, size

    def parts(self, filters: Filters) -> Iterator[Part]:
        """Yield the sums of `total` for one period after the other, oldest first.

        Each takes one bounded query, so none takes long.
        """
        after = lower_bound(filters)
        while True:
            boundary = self._read(functools.partial(PageQueries.boundary, filters=filters, after=after, count=_SUMMED))
            last = int(boundary[0][0]) if boundary else None
            (counted,) = self._read(functools.partial(PageQueries.sums, filters=filters, after=after, last=last))
            since = None if after is None else after + 1
            yield Part(since, filters.until if last is None else last + 1, int(counted[0]), int(counted[1]))
            if last is None:
                return
            after = last

    def add_indexes(self, progress: Callable[[], object] = lambda: None) -> None:
        """Create the indexes that the catalog of an older release lacks. Other processes may read meanwhile.

        Args:
            progress: called about once a second meanwhile. A true value ends the wait.

        Raises:
            CatalogError: an index cannot be created. The catalog works without it, but reading takes longer.
        """
        self._session.add_indexes(progress)

    def close(self) -> None:
        """Close the connection. A later call opens another."""
        self._session.close()

    def _all(self, filters: Filters) -> Iterator[Row]:
        matches = _name_filter(filters.name)
        for page in self._pages(filters):
            for found in page:
                row = _row(found)
                if matches(row.path):
                    yield row

    def _pages(self, filters: Filters) -> Iterator[Sequence[Any]]:
        most = _PAGE if filters.limit is None or filters.name is not None else min(_PAGE, filters.limit)
        after = lower_bound(filters)
        while True:
            page = self._read(functools.partial(PageQueries.newer, filters=filters, after=after, limit=most))
            if len(page) < most:
                yield page
                return
            after = int(page[-1][COLLECTED_AT])
            yield [row for row in page if row[COLLECTED_AT] < after]
            yield from self._same_time(filters, after, most)

    def _same_time(self, filters: Filters, when: int, most: int) -> Iterator[Sequence[Any]]:
        last = ""
        while True:
            page = self._read(
                functools.partial(PageQueries.same_time, filters=filters, when=when, after=last, limit=most)
            )
            yield page
            if len(page) < most:
                return
            last = page[-1][KEY]

    def _read(self, make: Callable[[PageQueries], Query]) -> Sequence[Any]:
        session = self._session
        return session.run(lambda connection: connection.exec_driver_sql(*make(session.queries)).fetchall(), "read")

    def _fetch(self, query: Any) -> Sequence[Any]:
        return self._session.run(lambda connection: connection.execute(query).fetchall(), "read")

    def _batch(self, statements: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        statements = [(sql, values) for sql, values in statements if values]
        if not statements:
            return

        def work(connection: sa.Connection) -> None:
            with self._session.transaction(connection) as cursor:
                for sql, values in statements:
                    cursor.executemany(sql, values)

        self._session.run(work, "write")


def clamped(time_ns: int) -> int:
    """Return a file's time within the limits of a `Row`."""
    return min(max(time_ns, -_LARGEST), _LARGEST)


_first = operator.itemgetter(0)


def _values(row: Row) -> tuple[Any, ...]:
    path = row.path
    return (
        key(path),
        escape(path),
        _escape_again(row.kind),
        _escape_again(row.container),
        escape(row.original),
        row.size,
        row.sha256,
        row.mtime_ns,
        row.collected_at,
        row.encoding,
        row.original_size,
    )


def _exactly(row: Row) -> tuple[Any, ...]:
    return key(row.path), row.collected_at, row.size, row.mtime_ns


def _row(found: Sequence[Any]) -> Row:
    _, path, kind, container, original, *rest = found
    return Row(unescape(path), unescape(kind), unescape(container), unescape(original), *rest)


def _name_filter(pattern: str | None) -> Callable[[str], bool]:
    if pattern is None:
        return lambda path: True
    match = re.compile(fnmatch.translate(pattern)).match
    if "/" in pattern:
        return lambda path: match(path) is not None
    return lambda path: match(path.rpartition("/")[2]) is not None
