"""Find the newest files of a kind that a limit of size keeps."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sharedvol_sidecar.catalog.catalog import Catalog, Filters, Part
from sharedvol_sidecar.catalog.encoding import key

Cutoff = tuple[int, str]
"""When a file was collected, and the key of its path: the order in which a size is counted."""


def cutoff(catalog: Catalog, kind: str, size: int) -> Generator[list[Any], None, Cutoff | None]:
    """Return the newest file that does not fit into ``size`` together with all newer ones; None if all fit.

    The sum starts at the newest file. So it is right while other processes delete old files, because those keep the
    newer ones. An empty list is yielded after each query.

    Raises:
        CatalogError: the catalog cannot be read.
    """
    parts: list[Part] = []
    for part in catalog.parts(Filters(kind=kind)):
        parts.append(part)
        yield []
    left = size
    for part in reversed(parts):
        if part.bytes > left:
            return _within(catalog, kind, part, left)
        left -= part.bytes
    return None


def _within(catalog: Catalog, kind: str, part: Part, left: int) -> Cutoff | None:
    rows = catalog.rows(Filters(kind=kind, since=part.since, until=part.until))
    for collected_at, name, size in sorted(((row.collected_at, key(row.path), row.size) for row in rows), reverse=True):
        left -= size
        if left < 0:
            return collected_at, name
    return None  # removed meanwhile
