"""What may never be true of a volume, judged by the digests of what is in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

PRIVATE = ".sharedvol"
FOLLOWED = ".live"  # the end of the name of a log that is still being followed
CATALOG = "catalog.db"
JOURNALS = ("-wal", "-journal")
"""Where SQLite keeps a transaction until the database holds it. It makes the index of a WAL (``-shm``) from that."""

_TABLE = "sharedvol_collected"


class Violation(AssertionError):
    """A file was lost, doubled, overwritten or seen unfinished, or a failure was not told."""


@dataclass(frozen=True)
class Found:
    """A regular file."""

    path: str
    digest: str
    size: int
    inode: tuple[int, int]
    content: bytes = field(repr=False)


@dataclass
class Expected:
    """What the volume must hold in the end.

    Attributes:
        before: the digests of the files that were in the destination from the start, by path.
        sources: the digests of the files to collect, with how often each is there.
        contents: the beginnings of their contents, to name them by.
    """

    before: dict[str, str] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, content: bytes) -> None:
        """One more file to collect."""
        self.sources[self.known(content)] += 1

    def known(self, content: bytes) -> str:
        """The digest of a content, which is shown by its beginning."""
        digest = digest_of(content)
        self.contents[digest] = content[:30]
        return digest

    @property
    def final(self) -> Counter[str]:
        """The digests of everything in the destination in the end."""
        return self.sources + Counter(self.before.values())

    def show(self, digests: Counter[str]) -> str:
        """For people."""
        return str({self.contents.get(digest, digest[:8].encode()): count for digest, count in digests.items()})


def digest_of(content: bytes) -> str:
    """SHA-256, as in the catalog."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Look:
    """The files of a volume at a moment when no mover runs."""

    final: list[Found]
    live: list[Found]
    waiting: list[Found]
    claims: list[Found]
    staged: list[Found]


def look(spool: Path, collected: Path) -> Look:
    """Read the whole volume."""
    visible = list(_files(collected))
    return Look(
        final=[file for file in visible if not file.path.endswith(FOLLOWED)],
        live=[file for file in visible if file.path.endswith(FOLLOWED)],
        waiting=list(_files(spool)),
        claims=list(_files(spool / PRIVATE / "claims")),
        staged=list(_files(collected / PRIVATE / "staging")),
    )


def check_moment(seen: Look, expected: Expected, where: str) -> None:
    """What holds at every moment: final names are whole files, each once, none replaced, and nothing is gone."""
    check_final(seen, expected, where)
    places = {file.inode: file.digest for file in (*seen.final, *seen.waiting, *seen.claims)}
    gone = expected.final - Counter(places.values())
    if gone:
        raise Violation(f"{where}: lost: {expected.show(gone)}")


def check_final(seen: Look, expected: Expected, where: str) -> None:
    """What holds of final names, even where the spool's files may be lost since their writers did not sync them."""
    finals = {file.path: file for file in seen.final}
    for path, digest in expected.before.items():
        if path not in finals:
            raise Violation(f"{where}: lost: {path}, which was in the destination")
        if finals[path].digest != digest:
            raise Violation(f"{where}: overwritten: {path}")
    doubled = Counter(file.digest for file in seen.final) - expected.final
    partial = [(file.path, file.size) for file in seen.final if file.digest not in expected.final]
    if partial:
        raise Violation(f"{where}: half-written: {partial}")
    if digest_of(b"") in doubled:  # another empty file may be one whose content is not there yet
        raise Violation(f"{where}: half-written or doubled: {expected.show(doubled)}: {sorted(finals)}")
    if doubled:
        raise Violation(f"{where}: doubled: {expected.show(doubled)}: {sorted(finals)}")


def check_end(seen: Look, expected: Expected, where: str) -> None:
    """What holds when a mover finished undisturbed: every file once, and nothing on the way."""
    check_moment(seen, expected, where)
    missing = expected.final - Counter(file.digest for file in seen.final)
    if missing:
        raise Violation(f"{where}: not collected: {expected.show(missing)}")
    left = [file.path for file in (*seen.live, *seen.waiting, *seen.claims, *seen.staged)]
    if left:
        raise Violation(f"{where}: left behind: {left}")


def check_catalog(collected: Path, seen: Look, expected: Expected, where: str) -> None:
    """Where there is a catalog: it has one row for each file that was collected, and no other."""
    rows = catalog(collected)
    if rows is None:
        return
    files = {file.path: (file.digest, file.size) for file in seen.final if file.path not in expected.before}
    if rows != files:
        raise Violation(f"{where}: catalog: without a row {_without(files, rows)}, wrong rows {_without(rows, files)}")


def check_catalog_moment(collected: Path, seen: Look, expected: Expected, where: str) -> None:
    """At every moment: a file whose source is gone has a right row, since the row is written first."""
    rows = catalog(collected)
    if rows is None:
        return
    sources = Counter(file.digest for file in (*seen.waiting, *seen.claims, *seen.live))
    for file in seen.final:
        if file.path in expected.before or sources[file.digest]:
            continue
        if rows.get(file.path) != (file.digest, file.size):
            raise Violation(f"{where}: catalog: {file.path} has the row {rows.get(file.path)}, and no source any more")


def catalog(collected: Path) -> dict[str, tuple[str, int]] | None:
    """The catalog's digests and sizes by path, or None where there is none. Reads a copy, to change nothing."""
    place = collected / PRIVATE
    if not (place / CATALOG).exists():
        return None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as copy:
        for end in ("", *JOURNALS):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(place / f"{CATALOG}{end}", Path(copy, f"{CATALOG}{end}"))
        connection = sqlite3.connect(Path(copy, CATALOG))
        try:
            known = connection.execute("SELECT name FROM sqlite_master WHERE name = ?", (_TABLE,)).fetchall()
            rows = connection.execute(f"SELECT path, sha256, size FROM {_TABLE}").fetchall() if known else []
        finally:
            connection.close()
    found = {os.fsdecode(unquote_to_bytes(path)): (digest, size) for path, digest, size in rows}
    if len(found) != len(rows):
        raise Violation(f"the catalog has a path twice: {sorted(rows)}")
    return found


def _without(some: Mapping[str, object], others: Mapping[str, object]) -> dict[str, object]:
    return {path: value for path, value in some.items() if others.get(path) != value}


def _files(root: Path) -> Iterator[Found]:
    """The regular files below ``root``, without what is hidden."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(directory, name)
            if name.startswith("."):
                continue
            with open(path, "rb") as file:
                info = os.fstat(file.fileno())
                if stat.S_ISREG(info.st_mode):
                    content = file.read()
                    inode = (info.st_dev, info.st_ino)
                    yield Found(os.path.relpath(path, root), digest_of(content), len(content), inode, content)
