"""The migrations that came with an image: a directory of SQL files, checked before anything is touched."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sharedvol.errors import ManifestError, ScriptError, describe
from sharedvol.migrations.sql.mysql_script import Statement, parse_script, plain

MAX_NAME: Final = 255  # characters of the ledger's column


@dataclass(frozen=True)
class Manifest:
    """What the image brought, against what it was said to bring.

    Attributes:
        ok: the migrations are those that were expected.
        allowed_empty: no migrations at all would do, too.
        count: how many there are.
        expected_latest: the name that the last one should have, if that was said.
        latest: the name that the last one has.
    """

    ok: bool
    allowed_empty: bool
    count: int
    expected_latest: str | None
    latest: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MigrationFile:
    """One SQL file, as it was read once.

    Attributes:
        name: the file's name: what the ledger knows it by.
        path: where it was read.
        text: its text, lines ending in LF, without a byte order mark.
        checksum: SHA-256 of ``text``, in hex: the same for a checkout with other line ends.
    """

    name: str
    path: Path
    text: str
    checksum: str

    def statements(self, *, backslash_escapes: bool = True) -> list[Statement]:
        """Its statements.

        Raises:
            ManifestError: it cannot be taken apart.
        """
        try:
            return parse_script(self.text, backslash_escapes=backslash_escapes)
        except ScriptError as error:
            raise ManifestError(f"{str(self.path)!r}, {error}") from error


def read_directory(directory: str | os.PathLike[str]) -> list[MigrationFile]:
    """The ``*.sql`` files of a directory, in the order of their names' bytes.

    Names that begin with a dot are left out, as R's list.files() does. Symbolic links are followed: mounted
    configuration consists of them.

    Raises:
        ManifestError: the directory does not exist, or a file in it cannot be read, is no UTF-8 or has a name
            that the ledger cannot hold.
    """
    place = Path(directory)
    try:
        names = sorted(os.listdir(place), key=os.fsencode)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"Migrations directory does not exist: {place}") from None
    except OSError as error:
        raise ManifestError(f"cannot read the migrations directory {str(place)!r}: {describe(error)}") from error
    return [_read(place, name) for name in names if name.endswith(".sql") and not name.startswith(".")]


def check(
    names: Sequence[str],
    source: str,
    *,
    expected_latest: str | None = None,
    expected_min_count: int | None = None,
    allow_empty: bool = False,
) -> Manifest:
    """Hold the names of an image's migrations against what was expected of them.

    Raises:
        ManifestError: with the words that R uses.
    """
    if not names and not allow_empty:
        raise ManifestError(f"No migration files found in: {source}")
    latest = names[-1] if names else None
    if expected_latest is not None and latest != expected_latest:
        raise ManifestError(f"Expected latest migration mismatch: expected {expected_latest}, found {latest}")
    if expected_min_count is not None and len(names) < expected_min_count:
        raise ManifestError(f"Migration file count too low: found {len(names)}, expected at least {expected_min_count}")
    return Manifest(True, allow_empty, len(names), expected_latest, latest)


def _read(place: Path, name: str) -> MigrationFile:
    path = os.path.join(place, name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"the name of {path!r} is not UTF-8, and the ledger is: rename the file") from None
    if len(name) > MAX_NAME or not name.isprintable():
        raise ManifestError(
            f"the ledger cannot hold the name {name!r}: {MAX_NAME} printable characters at most; rename the file"
        )
    try:
        # Looked at before it is opened: opening a FIFO would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ManifestError(f"{path!r} is not a regular file: move it elsewhere or give it another suffix")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ManifestError(f"cannot read the migration {path!r}: {describe(error)}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path!r}, line {line}: not UTF-8: save it as UTF-8") from None
    text = plain(text)
    return MigrationFile(name, Path(path), text, hashlib.sha256(text.encode()).hexdigest())
