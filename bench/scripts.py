"""The same migrations for each tool: plain SQL, which ours and yoyo read, and Alembic's revisions."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

PREPARE = (
    # Not transactional: what was run is counted, whatever is rolled back after it.
    "CREATE TABLE ran (name VARCHAR(100) NOT NULL) ENGINE=MyISAM",
    "CREATE TABLE balance (amount INT NOT NULL)",
    "INSERT INTO balance VALUES (0)",
)
ADDING = "SELECT amount FROM balance"
_EVERY = 5
"""One migration of so many changes data, and can be run twice without an error."""


@dataclass(frozen=True)
class Scripts:
    """Where the migrations are.

    Attributes:
        plain: a directory with ``*.sql``.
        revisions: Alembic's, as ``alembic init`` makes it.
        shared: the same, with the ``env.py`` that runs on a connection that it is given.
        additions: what ``ADDING`` shows when each was run once.
    """

    plain: Path
    revisions: Path
    shared: Path
    additions: int


def write(directory: Path, count: int) -> Scripts:
    """Write ``count`` migrations."""
    plain = directory / "plain"
    plain.mkdir(parents=True)
    for number in range(count):
        text = "".join(f"{statement};\n" for statement in statements(number))
        (plain / f"{number:03}_step.sql").write_text(text)
    revisions, shared = directory / "revisions", directory / "shared"
    for place in (revisions, shared):
        _alembic(place, count)
    if (shared / "env.py").exists():
        (shared / "env.py").write_text(_ENV)
    return Scripts(plain, revisions, shared, sum(_adds(number) for number in range(count)))


def statements(number: int) -> list[str]:
    """Of one migration."""
    first = f"INSERT INTO ran (name) VALUES ('{number:03}')"
    if _adds(number):
        return [first, "UPDATE balance SET amount = amount + 1"]
    return [
        first,
        f"CREATE TABLE t{number} (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, KEY (name))",
        f"INSERT INTO t{number} (name) VALUES ('a'), ('b'), ('c')",
        f"ALTER TABLE t{number} ADD COLUMN extra INT NOT NULL DEFAULT 0, ADD INDEX (extra)",
    ]


def _adds(number: int) -> bool:
    return number % _EVERY == _EVERY - 1


def _alembic(place: Path, count: int) -> None:
    try:
        from alembic import command
        from alembic.config import Config
    except ImportError:
        return
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(Config(str(place.with_suffix(".ini"))), str(place))
    for number in range(count):
        down = repr(f"{number - 1:03}") if number else "None"
        body = "".join(f"    op.execute({statement!r})\n" for statement in statements(number))
        (place / "versions" / f"{number:03}_step.py").write_text(
            f"from alembic import op\n\nrevision = '{number:03}'\ndown_revision = {down}\n\n\ndef upgrade():\n{body}"
        )


_ENV = """
from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
"""
