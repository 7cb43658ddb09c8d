"""What the tests of the migrations share: directories of files, all that a run leaves, runs in children."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pymysql

from sharedvol.errors import SharedVolError
from sharedvol.locks.mysql import NamedLock
from sharedvol.migrations import MigrationCoordinator, MigrationStatus
from sharedvol.migrations.status import Step
from support.processes import LIMIT, Child, wait_until
from support.servers import Database, Server

LOG = "CREATE TABLE log (file VARCHAR(20), step INT, note VARCHAR(100))"
"""A table without a key: what is run twice shows as a double row."""


R_LEDGER = (
    "CREATE TABLE schema_version (filename VARCHAR(255) PRIMARY KEY, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
)
"""The ledger as an R replica makes it."""


class Violation(AssertionError):
    """Something happened that must never happen."""


def url(database: Database, **more: str) -> str:
    """For a coordinator; without TLS, for which PyMySQL prepares at a cost of 20 ms each time."""
    options = "".join(f"&{key}={value}" for key, value in more.items())
    return f"{database.url}&ssl_disabled=1{options}"


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """The files, and no others."""
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def numbered(count: int) -> dict[str, str]:
    """Files of three statements each, of which none can be run twice unnoticed."""
    files = {"000_log.sql": f"{LOG};\n"}
    for number in range(1, count + 1):
        name = f"{number:03}"
        files[f"{name}_table.sql"] = (
            f"INSERT INTO log VALUES ('{name}', 1, NULL);\nCREATE TABLE t{name} (id INT);\n"
            f"INSERT INTO log VALUES ('{name}', 3, NULL);\n"
        )
    return files


def coordinator(database: Database, directory: Path, **options: Any) -> MigrationCoordinator:
    """With a wait that no test exceeds."""
    return MigrationCoordinator(url(database), directory, **{"lock_timeout": LIMIT, **options})


def migrate(database: Database, directory: Path, **options: Any) -> MigrationStatus:
    """Run, and see that the result is ready and that a fresh look says the same."""
    made = coordinator(database, directory, **options)
    status = made.run()
    assert status.ready and status.pending_migrations == 0 and status == made.current
    assert made.status().ready
    return status


def failing(database: Database, directory: Path, **options: Any) -> tuple[SharedVolError, MigrationStatus]:
    """The error of a run that must fail, and what the coordinator says of itself afterwards."""
    made = coordinator(database, directory, **options)
    try:
        made.run()
    except SharedVolError as error:
        assert made.current.state == "failed" and made.current.error and not made.current.ready
        return error, made.current
    raise AssertionError("nothing failed")


def recorded(database: Database) -> dict[str, int]:
    """The ledger: names, with whether they succeeded."""
    if not database.query("SHOW TABLES LIKE 'schema_version'"):
        return {}
    return dict(database.query("SELECT filename, success FROM schema_version"))  # type: ignore[arg-type]


def logged(database: Database) -> Counter[tuple[Any, ...]]:
    """How often each statement wrote its row into the log."""
    if not database.query("SHOW TABLES LIKE 'log'"):
        return Counter()
    return Counter(database.query("SELECT file, step FROM log"))


def steps(database: Database) -> list[int]:
    """The steps in the log, in order."""
    return sorted(step for _, step in logged(database).elements())


@contextlib.contextmanager
def coordinating(
    database: Database, directory: Path, *, at: Callable[[Step], bool], **options: Any
) -> Iterator[tuple[Child, Step]]:
    """A child that runs, and stands still at the first step that ``at`` chooses, until it is sent something.

    It says its status when it ends.
    """

    def work(connection: Connection) -> None:
        stopped = False

        def observe(step: Step) -> None:
            nonlocal stopped
            if not stopped and at(step):
                stopped = True
                connection.send(step)
                connection.recv()

        made = coordinator(database, directory, observer=observe, **options)
        with contextlib.suppress(SharedVolError):
            made.run()
        connection.send(made.current)

    with Child(work) as child:
        yield child, child.receive()


def is_statement(name: str, number: int) -> Callable[[Step], bool]:
    """For `coordinating`: before that statement of that file."""
    return lambda step: step.kind == "statement" and step.name == name and step.statement == number


def is_waiting(step: Step) -> bool:
    """For `coordinating`: the lock is not free."""
    return step.kind == "waiting"


def lock_of(database: Database) -> NamedLock:
    """The lock that a coordinator without a literal name takes."""
    return NamedLock(url(database), "sharedvol_migration", timeout=0)


def wait_ended(database: Database) -> None:
    """Until the server is done with every other session in the database, also of clients that are dead."""
    name = database.name
    others = (
        f"SELECT 1 FROM information_schema.processlist WHERE (db = '{name}' OR info LIKE '%{name}%') "
        "AND id <> CONNECTION_ID()"
    )
    with closing(database.server.connect()) as connection, connection.cursor() as cursor:

        def ended() -> bool:
            try:
                return cursor.execute(others) == 0
            except pymysql.err.OperationalError as error:
                if error.args[0] != 3854:  # MySQL cannot show a statement with an emoji: so one is still running
                    raise
                return False

        wait_until(ended, "the server to end the sessions of the dead")


def sessions(database: Database, doing: str = "%") -> list[tuple[int, str]]:
    """Number and state of the sessions whose statement is like ``doing``."""
    sql = (
        f"SELECT id, COALESCE(state, '') FROM information_schema.processlist WHERE db = '{database.name}' "
        f"AND id <> CONNECTION_ID() AND COALESCE(info, '') LIKE '{doing}'"
    )
    return [(int(number), str(state)) for number, state in database.query(sql)]


@dataclass(frozen=True)
class Scene:
    """A database and another one on the same server, with a directory of files for both."""

    database: Database
    other: Database
    directory: Path

    def picture(self) -> dict[str, Any]:
        """All that a run leaves: every definition and every row, without what differs from run to run."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:

            def ask(sql: str) -> list[tuple[Any, ...]]:
                cursor.execute(sql)
                return sorted((tuple(map(self._unnamed, row)) for row in cursor.fetchall()), key=repr)

            found: dict[str, Any] = {}
            for which, schema in (("OWN", self.database.name), ("OTHER", self.other.name)):
                for name, kind in ask(f"SHOW FULL TABLES FROM {schema}"):
                    made = re.sub(r" AUTO_INCREMENT=\d+", "", ask(f"SHOW CREATE TABLE {schema}.`{name}`")[0][1])
                    found[f"{which}.{name}"] = kind, made, ask(f"SELECT {_TOLD.get(name, '*')} FROM {schema}.`{name}`")
                for what, (columns, where) in _PROGRAMS.items():
                    found[f"{which} {what}"] = ask(
                        f"SELECT {columns} FROM information_schema.{what} WHERE {where} = '{schema}'"
                    )
            return found

    def _unnamed(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.replace(self.database.name, "OWN").replace(self.other.name, "OTHER")


_TOLD = {
    "schema_version": "filename, success",
    "sharedvol_migration": "filename, statements, started, done, applied, error",
}
_PROGRAMS = {
    "ROUTINES": (
        "ROUTINE_NAME, ROUTINE_TYPE, ROUTINE_DEFINITION, SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION",
        "ROUTINE_SCHEMA",
    ),
    "TRIGGERS": ("TRIGGER_NAME, ACTION_STATEMENT, SQL_MODE, CHARACTER_SET_CLIENT", "TRIGGER_SCHEMA"),
    "EVENTS": ("EVENT_NAME, EVENT_DEFINITION, SQL_MODE, CHARACTER_SET_CLIENT", "EVENT_SCHEMA"),
}


@contextlib.contextmanager
def scene(server: Server, directory: Path, files: Mapping[str, str]) -> Iterator[Scene]:
    """Two new databases; ``{own}`` and ``{other}`` in the files stand for their names."""
    own, other = Database(server, server.create_database()), Database(server, server.create_database())
    try:
        texts = {name: text.replace("{own}", own.name).replace("{other}", other.name) for name, text in files.items()}
        yield Scene(own, other, write(directory, texts))
    finally:
        own.drop()
        other.drop()
