"""The command ``sharedvol migrate``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from typing import TYPE_CHECKING, Any, Final

from sharedvol.cli.common import Commands, add_command
from sharedvol.cli.migration_progress import MigrationProgress
from sharedvol.cli.terminal import write_error, write_line
from sharedvol.database import url as database_url
from sharedvol.errors import (
    AheadError,
    DatabaseError,
    DriftError,
    HalfAppliedError,
    LedgerError,
    LockTimeout,
    LockUnsafeError,
    ManifestError,
    SharedVolError,
    describe,
)
from sharedvol.migrations import AlembicMigrations, MigrationCoordinator, MigrationStatus, Survey

if TYPE_CHECKING:
    from sqlalchemy import URL

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_PENDING: Final = 3
EXIT_MANIFEST: Final = 65  # EX_DATAERR of sysexits.h
EXIT_DATABASE: Final = 69  # EX_UNAVAILABLE
EXIT_CHECK: Final = 70  # EX_SOFTWARE: a person must check the database
EXIT_LOCK: Final = 75  # EX_TEMPFAIL: try again later

PASSWORD: Final = "SHAREDVOL_DATABASE_PASSWORD"
PASSWORD_FILE: Final = "SHAREDVOL_DATABASE_PASSWORD_FILE"

_CODES: Final = (
    (ManifestError, EXIT_MANIFEST),
    (LockTimeout, EXIT_LOCK),
    ((HalfAppliedError, LedgerError, DriftError, AheadError, LockUnsafeError), EXIT_CHECK),
    (DatabaseError, EXIT_DATABASE),
)

ABOUT: Final = """Apply database migrations once, however many replicas start at the same moment.

URL        the database, such as mysql://app@db/shop, or env:NAME to read the URL from the environment
           variable NAME. MySQL and MariaDB; sqlite:///path for development.
DIRECTORY  the *.sql files, applied in the order of their names; or an alembic.ini.

The password is read from --password-file, or from the file that SHAREDVOL_DATABASE_PASSWORD_FILE
names, or from SHAREDVOL_DATABASE_PASSWORD (not both); in the URL, others on the machine can read it."""

EXIT_CODES: Final = """exit codes:
  0    nothing is pending (plan: the plan was made)
  1    a migration failed; those before it stay applied
  2    wrong usage
  3    status: migrations are pending
  65   the migrations differ from the expected ones, or cannot be read
  69   the database cannot be reached, or refuses
  70   a person must check: a half-applied file that cannot be resumed, an unreadable ledger,
       a file changed since it was applied (--drift refuse), a newer database (--ahead refuse),
       a lock that would not exclude other replicas
  75   another replica holds the lock and did not finish in time"""


class UsageError(Exception):
    """The arguments are wrong."""


def add(commands: Commands) -> None:
    """Add the command with ``run``, ``plan`` and ``status``."""
    about = "Apply database migrations once, however many replicas start.\n\n" + ABOUT.partition("\n\n")[2]
    parser = add_command(commands, "migrate", about, EXIT_CODES)
    forms = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, about in (
        ("run", "Apply pending migrations, or wait until another replica has applied them."),
        ("plan", "Show what run would do. Changes nothing."),
        ("status", "Show which migrations are applied and who holds the lock. Changes nothing."),
    ):
        sub = add_command(forms, name, f"{about}\n\n{ABOUT}", EXIT_CODES)
        sub.add_argument("url", metavar="URL", help="the database, or env:NAME")
        sub.add_argument("directory", metavar="DIRECTORY", help="the *.sql files, or an alembic.ini")
        sub.add_argument("--json", action="store_true", help="print the status as a JSON object")
        sub.add_argument("--password-file", metavar="PATH", help="a file with the password, such as a Docker secret")
        _add_options(sub)
        if name == "run":
            _add_run_options(sub)
        sub.set_defaults(run=_COMMANDS[name])


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lock-name", metavar="NAME", help="the lock's literal name, as R replicas use it")
    parser.add_argument("--expected-latest", metavar="FILE", help="refuse unless this is the last migration")
    parser.add_argument("--expected-min-count", metavar="N", type=int, help="refuse if there are fewer migrations")
    parser.add_argument("--allow-empty", action="store_true", help="accept a directory without migrations")
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="a file was renamed: rename its row in the ledger (repeatable)",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock-timeout",
        metavar="S",
        type=_seconds,
        default=30.0,
        help="seconds to wait for the lock (default 30); 'none' waits until it is free",
    )
    parser.add_argument(
        "--half-applied",
        choices=("resume", "refuse", "rerun"),
        default="resume",
        help="what to do with a partially applied file: resume exactly where it stopped, or refuse if that is not "
        "safe (default); always refuse; or run it again from its first statement",
    )
    parser.add_argument(
        "--resume-at",
        metavar="FILE:N",
        action="append",
        default=[],
        help="resume a partially applied file at statement N, after you checked the database (repeatable)",
    )
    parser.add_argument(
        "--drift",
        choices=("tell", "refuse"),
        default="tell",
        help="what to do if a file changed after it was applied: report it (default), or refuse",
    )
    parser.add_argument(
        "--ahead",
        choices=("allow", "refuse"),
        default="allow",
        help="what to do if the database has migrations that are not among these files (default allow)",
    )
    parser.add_argument("--allow-unsafe", action="store_true", help="run on a cluster node, or through a pooler")
    parser.add_argument("--quiet", action="store_true", help="show no progress on standard error")


def _run(options: argparse.Namespace) -> int:
    # This command prints everything that the library logs.
    logging.getLogger("sharedvol").addHandler(logging.NullHandler())
    show = MigrationProgress(quiet=options.quiet)
    coordinator = _coordinator(
        options,
        lock_timeout=options.lock_timeout,
        half_applied=options.half_applied,
        resume_at=dict(_resume_at(text) for text in options.resume_at),
        drift=options.drift,
        ahead=options.ahead,
        allow_unsafe=options.allow_unsafe,
        observer=show,
    )
    try:
        status = coordinator.run()
    except ValueError as error:
        raise UsageError(str(error)) from error
    except SharedVolError as error:
        show.end()
        if options.json:
            _print_json(coordinator.current.as_dict())
        return _fail(error)
    finally:
        show.end()
    if options.json:
        _print_json(status.as_dict())
    else:
        applied = f"{status.newly_applied} applied" if status.newly_applied else "nothing to apply"
        write_line(f"{applied}, {status.total_migrations} in all: {_in_words(status)}")
        _print_findings(status)
    return 0


def _plan(options: argparse.Namespace) -> int:
    try:
        survey = _coordinator(options).plan()
    except ValueError as error:
        raise UsageError(str(error)) from error
    except SharedVolError as error:
        return _fail(error)
    if options.json:
        _print_json(
            {
                "pending": survey.pending,
                "statements": survey.statements,
                "renames": dict(survey.renames),
                "ahead": survey.ahead,
                "drifted": survey.drifted,
                "half_applied": [one.as_dict() for one in survey.half_applied],
                "total_migrations": len(survey.names),
            }
        )
        return 0
    write_line(f"{len(survey.pending)} of {len(survey.names)} migrations would be applied")
    renamed = {new: old for old, new in survey.renames}
    for name in survey.pending:
        count = survey.statements.get(name)
        write_line(
            f"  {name}"
            + (f"  {count} statements" if count is not None else "")
            + (f"  (recorded as {renamed[name]}: only its row is renamed)" if name in renamed else "")
        )
    _print_findings(survey)
    return 0


def _status(options: argparse.Namespace) -> int:
    try:
        status = _coordinator(options).status()
    except ValueError as error:
        raise UsageError(str(error)) from error
    except SharedVolError as error:
        return _fail(error)
    if options.json:
        _print_json(status.as_dict())
    else:
        applied = status.total_migrations - status.pending_migrations
        write_line(f"{applied} of {status.total_migrations} migrations are applied: {_in_words(status)}")
        for name in status.pending:
            write_line(f"  pending: {name}")
        _print_findings(status)
        if status.lock_holder:
            holder = status.lock_holder
            who = f" ({holder['user']} from {holder['host']})" if holder["user"] else ""
            write_line(f"  the lock {status.lock_name!r} is held by connection {holder['connection_id']}{who}")
    return EXIT_PENDING if status.pending else 0


_COMMANDS: Final = {"run": _run, "plan": _plan, "status": _status}


def _coordinator(options: argparse.Namespace, **more: Any) -> MigrationCoordinator:
    source: Any = options.directory
    if source.endswith(".ini") and os.path.isfile(source):
        source = AlembicMigrations(source)
    try:
        return MigrationCoordinator(
            _url(options),
            source,
            lock_name=options.lock_name,
            expected_latest=options.expected_latest,
            expected_min_count=options.expected_min_count,
            allow_empty=options.allow_empty,
            renames=dict(_rename(text) for text in options.rename),
            **more,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _url(options: argparse.Namespace) -> URL:
    """Return the database's URL with its password."""
    text = options.url
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        text = os.environ.get(name)
        if not text:
            raise UsageError(f"the environment variable {name} is not set: set it to the database's URL")
    try:
        url = database_url.read_url(text)
    except ModuleNotFoundError as error:
        raise UsageError(database_url.NOT_INSTALLED) from error
    except ValueError as error:
        raise UsageError(str(error)) from None
    if database_url.is_sqlite(url):
        if options.password_file:
            raise UsageError("an SQLite file has no password: leave --password-file out")
        return url
    if not options.password_file and os.environ.get(PASSWORD) and os.environ.get(PASSWORD_FILE):
        raise UsageError(f"{PASSWORD} and {PASSWORD_FILE} are both set: leave one out")
    path = options.password_file or os.environ.get(PASSWORD_FILE)
    if path:
        try:
            with open(path, encoding="utf-8") as file:
                return url.set(password=file.read().rstrip("\r\n"))
        except (OSError, ValueError) as error:
            # The message does not show the path, because a user may have given the password by mistake.
            named = "--password-file" if options.password_file else PASSWORD_FILE
            reason = describe(error) if isinstance(error, OSError) else "it is not a text file"
            raise UsageError(f"cannot read the password file that {named} names: {reason}") from None
    if PASSWORD in os.environ:
        return url.set(password=os.environ[PASSWORD])
    return url


def _rename(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise UsageError(f"--rename takes OLD=NEW, two file names, not {text!r}")
    return old, new


def _resume_at(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if not (name and number.isdecimal() and int(number) > 0):
        raise UsageError(f"--resume-at takes FILE:N, a file name and a statement counted from 1, not {text!r}")
    return name, int(number)


def _seconds(text: str) -> float | None:
    if text == "none":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: give 0 or more, or none")
    return seconds


def _in_words(status: MigrationStatus) -> str:
    return {"up_to_date": "up to date", "ahead": "the database is ahead of these files"}.get(status.state, status.state)


def _print_findings(found: MigrationStatus | Survey) -> None:
    for one in found.half_applied:
        write_line(f"  half-applied: {one}")
    for name in found.drifted:
        write_line(f"  changed since it was applied: {name}")
    for name in found.ahead:
        write_line(f"  applied, but not among these files: {name}")


def _print_json(value: dict[str, Any]) -> None:
    write_line(json.dumps(value))


def _fail(error: SharedVolError) -> int:
    write_error(str(error))
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_FAILED)
