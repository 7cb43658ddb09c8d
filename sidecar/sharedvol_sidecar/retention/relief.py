"""Make room on a full disk by what the rules do not keep.

SQLite makes files before it reads a catalog, and more when it writes. On a full disk it can do neither. So the
catalog's file is read as it is, files are deleted by what it says, and their rows are forgotten as soon as SQLite has
room again. A kill in between leaves rows without files, which the next run forgets.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Row
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import PRIVATE
from sharedvol_sidecar.retention.pruner import Expired, Pruned, Rule, forgettable, plan, unlink

_STEP = 100


@contextlib.contextmanager
def readable(url: str | None, root: Directory) -> Iterator[Catalog]:
    """Open a catalog to read it, on a full disk as well.

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
    """Delete what the rules do not keep, in short steps, until the catalog can be opened. Else do nothing.

    Args:
        url: of the catalog, as for `Catalog`.
        root: the destination's root.
        rules: one for each kind; of other kinds everything is kept.
        now_ns: nanoseconds since 1970 (UTC).

    Yields:
        What became of the files of a step.

    Raises:
        CatalogError: the catalog cannot be opened, and nothing is left that could be deleted.
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
            doomed = _next(url, root, rules, now_ns, done)
            if not doomed:
                raise
        outcomes = unlink(root, doomed)
        rows += forgettable(outcomes)
        yield outcomes


def _next(url: str | None, root: Directory, rules: Sequence[Rule], now_ns: int, done: int) -> list[Expired]:
    with contextlib.closing(Catalog.frozen(url, root)) as catalog:
        return list(itertools.islice(plan(catalog, rules, now_ns), done, done + _STEP))
