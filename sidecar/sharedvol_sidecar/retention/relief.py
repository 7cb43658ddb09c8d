"""Free space on a full disk by deleting the files that the retention rules do not keep.

SQLite creates files before it reads a catalog, and more when it writes. On a full disk it can do neither. So the
catalog's file is read as it is, expired files are deleted, and their rows are deleted as soon as SQLite has room again.
A kill in between leaves rows without files, which the next run deletes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Row
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import PRIVATE
from sharedvol_sidecar.retention.pruner import Expired, Pruned, forgettable, plan, unlink
from sharedvol_sidecar.retention.rules import Rule

_STEP = 100


@contextlib.contextmanager
def readable(url: str | None, root: Directory) -> Iterator[Catalog]:
    """Open a catalog for reading, even on a full disk.

    Args:
        url: of the catalog, as for `Catalog`.
        root: the destination's root.

    Raises:
        CatalogError: it cannot be read.
    """
    try:
        catalog = Catalog.open(url, root, create=False)
    except CatalogError as error:
        if not error.full:
            raise
        catalog = Catalog.frozen(url, root)
    try:
        yield catalog
    finally:
        catalog.close()


def make_room(url: str | None, root: Directory, rules: Sequence[Rule], now_ns: int) -> Iterator[list[Pruned]]:
    """Delete expired files in short steps until the catalog can be opened. Do nothing if it can be opened now.

    Args:
        url: of the catalog, as for `Catalog`.
        root: the destination's root.
        rules: one for each kind. Every file of another kind is kept.
        now_ns: nanoseconds since 1970 (UTC).

    Yields:
        The outcomes of a step's files.

    Raises:
        CatalogError: the catalog cannot be opened, and no expired file is left.
    """
    rows: list[Row] = []
    for done in itertools.count(0, _STEP):
        try:
            with contextlib.closing(Catalog.open(url, root, create=False)) as catalog:
                catalog.forget(rows)
            return
        except CatalogError as error:
            if not error.full or root.inode(PRIVATE) is None:
                raise
            expired = _next(url, root, rules, now_ns, done)
            if not expired:
                raise
        outcomes = unlink(root, expired)
        rows += forgettable(outcomes)
        yield outcomes


def _next(url: str | None, root: Directory, rules: Sequence[Rule], now_ns: int, done: int) -> list[Expired]:
    with contextlib.closing(Catalog.frozen(url, root)) as catalog:
        return list(itertools.islice(plan(catalog, rules, now_ns), done, done + _STEP))
