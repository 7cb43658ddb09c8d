"""Read and check the migrations that come with an image, before anything is changed."""

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
    """The migrations that an image has, compared with what was expected.

    Attributes:
        ok: the migrations are as expected.
        allowed_empty: no migrations at all would also be accepted.
        count: how many there are.
        expected_latest: the expected name of the last one, if it was given.
        latest: the name of the last one.
    """

    ok: bool
    allowed_empty: bool
    count: int
    expected_latest: str | None
    latest: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Expected:
    """What an image should have.

    Attributes:
        latest: the name of its last migration.
        min_count: how many migrations it should have at least.
        allow_empty: no migrations at all are fine.
    """

    latest: str | None = None
    min_count: int | None = None
    allow_empty: bool = False

    def compared(self, names: Sequence[str], *, ok: bool) -> Manifest:
        """Return the manifest of an image with these migrations."""
        return Manifest(ok, self.allow_empty, len(names), self.latest, names[-1] if names else None)

    def check(self, names: Sequence[str], source: str) -> Manifest:
        """Compare the names of an image's migrations with what is expected.

        Raises:
            ManifestError: in the words of the R implementation.
        """
        found = self.compared(names, ok=True)
        if not names and not self.allow_empty:
            raise ManifestError(f"No migration files found in: {source}")
        if self.latest is not None and found.latest != self.latest:
            raise ManifestError(f"Expected latest migration mismatch: expected {self.latest}, found {found.latest}")
        if self.min_count is not None and found.count < self.min_count:
            raise ManifestError(
                f"Migration file count too low: found {found.count}, expected at least {self.min_count}"
            )
        return found


@dataclass(frozen=True)
class MigrationFile:
    """One SQL file.

    Attributes:
        name: the file's name, which is its key in the ledger.
        path: the file's path.
        text: its text without a byte order mark, with lines that end in LF.
        checksum: SHA-256 of ``text`` in hex. It does not depend on the line ends of the checkout.
    """

    name: str
    path: Path
    text: str
    checksum: str

    def statements(self, *, backslash_escapes: bool = True) -> list[Statement]:
        """Split it into statements.

        Raises:
            ManifestError: it cannot be split.
        """
        try:
            return parse_script(self.text, backslash_escapes=backslash_escapes)
        except ScriptError as error:
            raise ManifestError(f"{str(self.path)!r}, {error}") from error


def read_directory(directory: str | os.PathLike[str]) -> list[MigrationFile]:
    """Read the ``*.sql`` files of a directory, in the order of their names' bytes.

    Names that begin with a dot are skipped, as by R's list.files(). Symbolic links are followed, because mounted
    configuration consists of them.

    Raises:
        ManifestError: the directory does not exist, or a file in it cannot be read, is not UTF-8 or has a name that the
            ledger cannot hold.
    """
    place = Path(directory)
    try:
        names = sorted(os.listdir(place), key=os.fsencode)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"Migrations directory does not exist: {place}") from None
    except OSError as error:
        raise ManifestError(f"cannot read the migrations directory {str(place)!r}: {describe(error)}") from error
    return [_read(place, name) for name in names if name.endswith(".sql") and not name.startswith(".")]


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
        # Checked before the open, because opening a FIFO would block.
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
