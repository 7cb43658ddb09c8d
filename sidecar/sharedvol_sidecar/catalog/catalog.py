"""The catalog: one row for each collected file, whatever was killed.

A row is added when its file's final name is durable and before the claim goes. A mover that is killed in
between leaves the claim, which is found again, gets the same name and so the same key: one row. A row is
believed by people only; no file is ever moved or kept because of one. So a lost catalog is an inconvenience
that `rebuild` mends.

SQLite beside the files by default: ``<destination>/.sharedvol/catalog.db``, or MariaDB or MySQL by URL.
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
    """What is known of one collected file.

    Attributes:
        path: where it is, relative to the destination, as `os.fsdecode` gives it.
        kind: ``results`` or ``logs``, or another that was configured; empty if not known.
        container: the container's name; empty if not known.
        original: its path in the spool; empty if not known.
        size: bytes, as it is stored.
        sha256: hexadecimal, of what is stored; None if no digest was made.
        mtime_ns: when it was written, nanoseconds since 1970 (UTC).
        collected_at: when it was collected, nanoseconds since 1970 (UTC).
        encoding: how it is stored: ``gzip``, ``zstd``, or None for as it was.
        original_size: bytes before it was encoded.
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
        # Anybody can give a file a time that 64 bits of nanoseconds do not hold, and it must not stop the others.
        if not -_LARGEST <= self.mtime_ns <= _LARGEST:
            self.mtime_ns = clamped(self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows; None is all.

    Attributes:
        kind: exactly this.
        container: exactly this.
        name: a shell pattern for the file's name or, if it holds a slash, for the path.
        since: collected then or later, nanoseconds since 1970.
        until: collected before, nanoseconds since 1970.
        limit: so many at most.
    """

    kind: str | None = None
    container: str | None = None
    name: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The sums of the rows of a stretch of time.

    Attributes:
        since: collected then or later, nanoseconds since 1970; None for the beginning.
        until: collected before; None for the end.
        files: how many rows.
        bytes: their sizes together.
    """

    since: int | None
    until: int | None
    files: int
    bytes: int


class Catalog:
    """The rows of one destination. One connection, for one thread; a forked child gets its own by itself.

    Connects at the first call, and after a failure at the next. Several processes may use the same catalog.

    Args:
        url: of SQLAlchemy, ``mysql://…`` or ``sqlite:///…``; empty or None for the file beside the destination.
        destination: the destination's root.
        create: whether a catalog that is missing is made; else it is an error.
        frozen: only read it, as it is in its file: see `frozen`.

    Raises:
        ConfigError: the URL cannot be one of a catalog, or the destination's private directory is not ours.
        CatalogError: by every method: the database failed; nothing was changed.
    """

    def __init__(
        self, url: str | None, destination: Directory | Path, *, create: bool = True, frozen: bool = False
    ) -> None:
        root = destination if isinstance(destination, Directory) else open_root(destination)
        if url:
            target = read_url(url)
        else:
            place = str(Path(root.shown).resolve() / PRIVATE / FILE)
            if create or root.inode(PRIVATE) is not None:
                open_private(root)
            if create:
                root.sync()  # or a power cut could take the directory with all rows in it
            target = sa.URL.create("sqlite", database=place)
        self._session = CatalogSession(target, create=create, frozen=frozen)

    @classmethod
    def open(cls, url: str | None, destination: Directory | Path, *, create: bool = True) -> Catalog:
        """As the constructor, and connects.

        Raises:
            CatalogError: it cannot be opened, or is of a newer version.
        """
        catalog = cls(url, destination, create=create)
        catalog._session.run(lambda connection: None, "open")
        return catalog

    @classmethod
    def frozen(cls, url: str | None, destination: Directory | Path) -> Catalog:
        """Open the file of a catalog as it is, for reading: where a full disk keeps SQLite from opening it.

        No other process may open it until `close`.

        Raises:
            CatalogError: it cannot be read, or another process has it open.
        """
        catalog = cls(url, destination, create=False, frozen=True)
        catalog._session.run(lambda connection: None, "open")
        return catalog

    @property
    def label(self) -> str:
        """What to call it in a message: without a password."""
        return self._session.label

    def add(self, rows: Sequence[Row]) -> None:
        """Record files in one transaction, durable on return. A path that has a row gets this one instead."""
        self._batch([(self._session.statements.upsert, sorted(map(_values, rows), key=_first))])

    def remove(self, paths: Iterable[str]) -> None:
        """Forget paths, whatever is known of them: for a final name that was taken back."""
        self._batch([(self._session.statements.delete, sorted((key(path),) for path in paths))])

    def forget(self, rows: Iterable[Row]) -> None:
        """Forget exactly these rows. A file that was collected meanwhile under such a name keeps its own."""
        self._batch([(self._session.statements.delete_exact, [_exactly(row) for row in rows])])

    def amend(self, changes: Sequence[tuple[Row | None, Row]]) -> None:
        """Put a row in the place of exactly that one, or of none. A row that came meanwhile stays."""
        old = [_exactly(before) for before, _ in changes if before is not None]
        new = [_values(after) for _, after in changes]
        self._batch([(self._session.statements.delete_exact, old), (self._session.statements.insert_new, new)])

    def rows(self, filters: Filters = Filters()) -> Iterator[Row]:
        """The rows that pass, oldest first, page by page: other calls may come in between."""
        return islice(self._all(filters), filters.limit)

    def get(self, path: str) -> Row | None:
        """What is known of a path."""
        return self.known([path]).get(path)

    def known(self, paths: Sequence[str]) -> dict[str, Row]:
        """The rows of these paths, by path."""
        found: dict[str, Row] = {}
        for start in range(0, len(paths), _PAGE):
            keys = [key(path) for path in paths[start : start + _PAGE]]
            query = sa.select(collected).where(collected.c.key.in_(keys))
            found.update((row.path, row) for row in map(_row, self._fetch(query)))
        return found

    def count(self) -> int:
        """How many rows there are."""
        return int(self._fetch(sa.select(sa.func.count()).select_from(collected))[0][0])

    def total(self, filters: Filters) -> tuple[int, int]:
        """How many rows pass, and their bytes; by all but ``name`` and ``limit``."""
        files = size = 0
        for part in self.parts(filters):
            files, size = files + part.files, size + part.bytes
        return files, size

    def parts(self, filters: Filters) -> Iterator[Part]:
        """The sums of `total` for one stretch of time after the other, oldest first.

        Each takes one bounded query, however many rows there are.
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
        """Make the indexes that the catalog of an older release lacks. Other processes may read meanwhile.

        Args:
            progress: called about once a second while this takes time.

        Raises:
            CatalogError: an index cannot be made. Nothing else depends on it: reading takes longer without.
        """
        self._session.add_indexes(progress)

    def close(self) -> None:
        """End the connection; a later call would make another."""
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
    """A file's time as a `Row` holds it."""
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
