"""Rows to test with, and a destination whose files the catalog knows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharedvol_sidecar.catalog.catalog import Catalog, Row
from sharedvol_sidecar.catalog.session import CatalogSession

DAY = 86_400 * 1_000_000_000
NOW = 1_900_000_000 * 1_000_000_000

HOSTILE = [
    b"results/line\nbreak",
    b"results/\x1b[31mred\x1b[0m",
    b"results/\xff\xfe not UTF-8",
    b"results/100%",
    b"results/%0A",
    b"results/" + b"x" * 255,
    b"results/" + "ü".encode() * 127,
    "results/\u202egpj.exe".encode(),
    "results/\U0001f600".encode(),
    b"results/'; DROP TABLE sharedvol_collected; --",
    b"results/ends with a space ",
    b"results/Case",
    b"results/case",
    b"results/\\",
]


def row(path: str = "results/a", **changes: object) -> Row:
    """A row; by default the same each time."""
    values: dict[str, object] = {
        "kind": "results",
        "container": "c1",
        "original": f"c1/{path}",
        "size": 1,
        "sha256": "00" * 32,
        "mtime_ns": 2,
        "collected_at": 3,
    }
    return Row(path, **{**values, **changes})  # type: ignore[arg-type]


class Collected:
    """A destination with files that were collected."""

    def __init__(self, root: Path, url: str = "") -> None:
        root.mkdir(exist_ok=True)
        self.root, self.url = root, url
        self.catalog = Catalog.open(url, root)

    def add(self, path: str, content: str = "content", *, age: int = 0, **changes: object) -> Row:
        """A file and its row, collected ``age`` nanoseconds before `NOW`."""
        made = self.file(path, content)
        made.collected_at = NOW - age
        for name, value in changes.items():
            setattr(made, name, value)
        self.catalog.add([made])
        return made

    def file(self, path: str, content: str = "content") -> Row:
        """A file, and the row that would be true of it."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        info = target.stat()
        hashed = hashlib.sha256(content.encode()).hexdigest()
        kind = path.partition("/")[0]
        return Row(path, kind, "c1", f"c1/{path}", info.st_size, hashed, info.st_mtime_ns, info.st_ctime_ns)

    def paths(self) -> set[str]:
        """Of the rows."""
        return {found.path for found in self.catalog.rows()}

    def names(self) -> set[str]:
        """Of everything that is there, directories too, but the private one."""
        found = set()
        for directory, below, files in os.walk(self.root):
            below[:] = [name for name in below if name != ".sharedvol"]
            found.update(os.path.relpath(os.path.join(directory, name), self.root) for name in (*below, *files))
        return found


def die_at_the_commit(before: bool) -> None:
    """In a child: its next transaction ends in SIGKILL, before the commit or after."""
    real = CatalogSession.transaction

    @contextlib.contextmanager
    def dying(self: CatalogSession, connection: Any) -> Iterator[Any]:
        with real(self, connection) as cursor:
            yield cursor
            if before:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    CatalogSession.transaction = dying  # type: ignore


FIRST_RELEASE = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS sharedvol_collected (
    "key" CHAR(32) NOT NULL, path TEXT NOT NULL, kind VARCHAR(765) NOT NULL, container VARCHAR(765) NOT NULL,
    original TEXT NOT NULL, size BIGINT NOT NULL, sha256 CHAR(64), mtime_ns BIGINT NOT NULL,
    collected_at BIGINT NOT NULL, encoding VARCHAR(16), original_size BIGINT, PRIMARY KEY ("key")
);
CREATE INDEX IF NOT EXISTS sharedvol_collected_when ON sharedvol_collected (collected_at, "key");
CREATE INDEX IF NOT EXISTS sharedvol_collected_who ON sharedvol_collected (kind, container, collected_at);
CREATE TABLE IF NOT EXISTS sharedvol_catalog (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
INSERT OR IGNORE INTO sharedvol_catalog (id, version) VALUES (1, 1);
DROP INDEX IF EXISTS sharedvol_collected_kind;
DROP INDEX IF EXISTS sharedvol_collected_container;
"""


def first_release(root: Path) -> Path:
    """The catalog of a destination as release 0.1.0 makes it, or as it was left with; its file."""
    file = root / ".sharedvol" / "catalog.db"
    file.parent.mkdir(exist_ok=True, mode=0o700)
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(FIRST_RELEASE)
    file.chmod(0o600)
    return file
