"""Read a catalog's SQLite file on a read-only mount, such as a backup or a volume in another container.

SQLite cannot make the files of its write-ahead log (WAL) there, see <https://sqlite.org/wal.html#read_only_databases>:

- If they exist, a process has the catalog open or was killed. SQLite reads them with its own locks (``mode=ro``).
- If they do not exist, everything is in one file, which SQLite reads without locks (``immutable=1``). It then assumes
  that nothing changes. So a result is valid only if the files are the same afterwards.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sharedvol.locks.file.pinned import TICK
from sharedvol_sidecar.errors import CatalogError

_FILES: Final = ("", "-wal", "-shm", "-journal")
_TRIES: Final = 50


def is_read_only(path: Path) -> bool:
    """Return whether the file system of a catalog's file is mounted read-only."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


class ReadOnlyFile:
    """The file in one state. Create another object when it has changed.

    Args:
        path: the file.
        patience: seconds to wait for a process that writes.

    Raises:
        CatalogError: it cannot be read as it is.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience = path, patience
        self._seen = self._wait_until_steady()
        _, log, index, journal = self._seen
        self._live = bool(log and index) or bool(journal and journal[1])
        if log and log[1] and not index:
            raise CatalogError(
                f"catalog {str(path)!r} has changes in {path.name}-wal that cannot be read on a read-only mount: "
                "mount it read-write once, or copy both files to where they can be written"
            )

    def connect(self) -> sqlite3.Connection:
        """Open it for reading."""
        how = "" if self._live else "&immutable=1"
        return sqlite3.connect(f"file:{quote(os.fsencode(self._path))}?mode=ro{how}", self._patience, uri=True)

    @property
    def has_changed(self) -> bool:
        """Whether the file has changed since, so that a result may be old or mixed."""
        return not self._live and self._stamps() != self._seen

    def _wait_until_steady(self) -> tuple[tuple[int, ...] | None, ...]:
        """Return the files' state after a tick of the file system's clock, so that the next change has another time."""
        seen = self._stamps()
        for _ in range(_TRIES):
            time.sleep(TICK / 1e9)
            before, seen = seen, self._stamps()
            if seen == before:
                return seen
        raise CatalogError(f"catalog {str(self._path)!r} keeps changing: try again later")

    def _stamps(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(_stamp(f"{self._path}{end}") for end in _FILES)


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
