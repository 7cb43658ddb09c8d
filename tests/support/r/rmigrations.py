"""R in the tests of migrations: the reference file in real R processes, and Python replicas beside them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sharedvol.migrations import MigrationCoordinator
from sharedvol.migrations.status import Step
from support.processes import LIMIT, Child, reaped, wait_until
from support.r.rprocess import command
from support.servers import Database, Server

REFERENCE = Path(__file__).parents[3] / "docs/r/sharedvol.R"
LOCK = "sysndd_migration"
LOG = "CREATE TABLE log (file VARCHAR(20), step INT, note VARCHAR(100))"
"""A table without a key: what is run twice shows as a double row."""

# Does what each line of its input says, and says how it ended on one line: to start R costs as much as ten migrations.
REPLICA = """
invisible(loadNamespace("RMySQL"))
said <- character()
status <- NULL
answer <- function(...) {
  writeLines(jsonlite::toJSON(list(...), auto_unbox = TRUE, digits = NA), useBytes = TRUE)  # cat() would ask the locale
}
input <- file("stdin", "r")
answer(here = Sys.getpid())
while (length(line <- readLines(input, 1L, encoding = "UTF-8"))) {
  asked <- jsonlite::fromJSON(line, simplifyVector = FALSE)
  connect <- function() {
    do.call(DBI::dbConnect, c(list(RMySQL::MySQL(), host = "127.0.0.1"), asked$connect))
  }
  options <- asked$options
  if (identical(options$timeout, "Inf")) options$timeout <- Inf
  said <- character()
  if (asked$do == "ready") {
    report <- sv_readiness(status, connect, if (is.null(asked$when)) "always" else asked$when)
    answer(code = report$code, body = report$body)
    next
  }
  error <- NULL
  log <- function(text) {
    said <<- c(said, text)
    if (asked$tell) answer(said = text)
  }
  status <- tryCatch(
    do.call(sv_migrate, c(list(connect, asked$directory, log = log), options)),
    sv_migration_failed = function(condition) { error <<- condition; condition$status }
  )
  answer(
    error = if (is.null(error)) NA else conditionMessage(error), classes = as.list(class(error)),
    status = sv__report(status, NULL, "unknown")$body, log = as.list(said),
    open = length(DBI::dbListConnections(RMySQL::MySQL()))
  )
}
"""


def start(code: str, *args: str | os.PathLike[str], **environment: str) -> subprocess.Popen[str]:
    """An R process that runs ``code`` with the reference sourced; ``args`` are ``commandArgs(TRUE)``."""
    whole = f"source('{REFERENCE}', encoding = 'UTF-8'); arguments <- commandArgs(TRUE)\n{code}"
    return subprocess.Popen(
        [*command(), "-e", whole, *map(os.fspath, args)],
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(code: str, *args: str | os.PathLike[str], **environment: str) -> str:
    """What R prints."""
    with reaped(start(code, *args, **environment)) as process:
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        return out


class Replica:
    """An R process that migrates when it is told, as often as it is; use it in a ``with``."""

    def __init__(self, **environment: str) -> None:
        self.process = start(REPLICA, **environment)
        self._reaper = reaped(self.process)
        self._unread = b""
        self.pid = int(self.receive()["here"])

    def __enter__(self) -> Replica:
        self._reaper.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reaper.__exit__(*error)

    def send(
        self,
        database: Database,
        directory: Path,
        do: str = "migrate",
        *,
        tell: bool = False,
        user: str = "root",
        password: str = "",
        port: int | None = None,
        when: str | None = None,
        **options: Any,
    ) -> None:
        """Have it migrate; ``receive`` says how that ended, and with ``tell`` each line of its log before."""
        assert self.process.stdin is not None
        connect = {"port": port or database.server.port, "user": user, "password": password, "dbname": database.name}
        given = {"lock_name": LOCK, "timeout": LIMIT, **options}
        asked = {"do": do, "connect": connect, "directory": os.fspath(directory), "options": given, "tell": tell}
        asked |= {"when": when} if when else {}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None and self.process.stderr is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            assert select.select([fd], [], [], LIMIT)[0], "R said nothing"
            part = os.read(fd, 65536)
            assert part, f"R ended: {self.process.stderr.read()}"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return dict(json.loads(line))

    def migrate(self, database: Database, directory: Path, **options: Any) -> dict[str, Any]:
        """The status of a run that must end well."""
        found = self.run(database, directory, **options)
        assert found["error"] is None and found["status"]["pending_migrations"] == 0, found["error"]
        return dict(found["status"])

    def failing(self, database: Database, directory: Path, **options: Any) -> dict[str, Any]:
        """How a run ended that must not end well: error, classes, status."""
        found = self.run(database, directory, **options)
        assert found["error"] is not None, found["status"]
        assert found["status"]["error"] == found["error"] and found["status"]["state"] == "failed"
        assert {"sv_migration_failed", "sv_error", "error"} <= set(found["classes"])
        return found

    def run(self, database: Database, directory: Path, **options: Any) -> dict[str, Any]:
        self.send(database, directory, **options)
        found = self.receive()
        assert found["open"] == 0  # no connection is left open, however it ended
        return found

    def ready(self, database: Database, **options: Any) -> tuple[int, dict[str, Any]]:
        """What it answers to a health check, by the status of its last run."""
        self.send(database, Path(), "ready", **options)
        found = self.receive()
        return found["code"], found["body"]


@contextlib.contextmanager
def python(
    database: Database, directory: Path, at: Callable[[Step], bool] = lambda step: False, **options: Any
) -> Iterator[Child]:
    """A Python replica that is there ("here"), begins when it is sent something, and sends its status at the end.

    At the first step that ``at`` chooses it sends the step, and stands still until it is sent something.
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
        connection.send("here")
        connection.recv()
        connection.send(made.run())

    with Child(work) as child:
        assert child.receive() == "here"
        yield child


def coordinator(database: Database, directory: Path, **options: Any) -> MigrationCoordinator:
    return MigrationCoordinator(
        f"{database.url}&ssl_disabled=1", directory, **{"lock_name": LOCK, "lock_timeout": LIMIT, **options}
    )


def is_waiting(step: Step) -> bool:
    return step.kind == "waiting"


def is_statement(name: str, number: int) -> Callable[[Step], bool]:
    """Before that statement of that file."""
    return lambda step: step.kind == "statement" and step.name == name and step.statement == number


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """The files, and no others."""
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def note(file: str, step: int, text: str = "NULL") -> str:
    """A statement that leaves its own row."""
    return f"INSERT INTO log VALUES ('{file}', {step}, {text});\n"


def numbered(count: int) -> dict[str, str]:
    """Files of three statements each, of which none can be run twice unnoticed."""
    files = {"000_log.sql": f"{LOG};\n"}
    for number in range(1, count + 1):
        name = f"{number:03}"
        files[f"{name}_table.sql"] = f"{note(name, 1)}CREATE TABLE t{name} (id INT);\n{note(name, 3)}"
    return files


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


def holder(server: Server, lock: str = LOCK) -> int | None:
    """The connection that has a lock."""
    ((number,),) = server.query(f"SELECT IS_USED_LOCK('{lock}')")
    return None if number is None else int(number)


class Gate:
    """A place in a migration where it stands still until the gate is opened."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = f"gate_{database.name}"
        self.statement = f"DO GET_LOCK('{self._name}', 3600) + RELEASE_LOCK('{self._name}');\n"
        self._connection = database.connect()
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT GET_LOCK('{self._name}', 0)")
            assert cursor.fetchone() == (1,)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        self._connection.close() if self._connection.open else None

    def wait_reached(self) -> int:
        """Until a migration stands there; its connection."""
        wait_until(lambda: bool(waiting_for(self._database.server, self._name)), "a migration at the gate")
        return waiting_for(self._database.server, self._name)[0]


def waiting_for(server: Server, lock: str) -> list[int]:
    """The connections that wait for a lock on the server."""
    told = lock.encode().hex()
    rows = server.query(
        "SELECT id FROM information_schema.processlist WHERE state LIKE 'User lock%' AND id <> CONNECTION_ID() "
        f"AND (info LIKE '%GET_LOCK%{lock}%' OR info LIKE '%GET_LOCK%{told}%')"
    )
    return [int(number) for (number,) in rows]


def wait_free(server: Server, lock: str = LOCK) -> None:
    """Until nobody has a lock: a server takes its time to end the session of who is gone."""
    wait_until(lambda: holder(server, lock) is None, f"{lock} to be free")
