"""The command ``sharedvol``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TextIO

import sharedvol
from sharedvol import FileLock, LockError, LockTimeout, SharedVolError
from sharedvol.cli import doctor as doctor_command
from sharedvol.cli import lint as lint_command
from sharedvol.cli import migrate as migrate_command
from sharedvol.cli import status as status_command
from sharedvol.cli.run_locked import CannotRun, run_locked
from sharedvol.cli.terminal import EXIT_ERROR, Parser, conclude, write_error, write_line
from sharedvol.environment import mistyped
from sharedvol.errors import describe

EXIT_USAGE = 2
EXIT_LOCK_FILE = 74  # EX_IOERR of sysexits.h
EXIT_TIMEOUT = 75  # EX_TEMPFAIL: try again later


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return conclude("sharedvol", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(_separated(sys.argv[1:] if arguments is None else arguments))
    for name, meant in mistyped(os.environ):
        write_error(f"warning: nothing reads the environment variable {name!r}; did you mean {meant}?")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
        return code
    except migrate_command.UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except SharedVolError as error:
        return _fail(str(error), EXIT_ERROR)
    except BrokenPipeError:
        raise  # the reader of our output went away
    except OSError as error:
        where = "" if error.filename is None else f" with {error.filename!r}"
        return _fail(f"cannot continue{where}: {describe(error)}", EXIT_ERROR)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print what Python warns of in one line, without the place in our code that it comes from."""
    write_error(f"warning: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _command(
        None,
        "sharedvol",
        "Make a Docker volume safe to share between container replicas.",
        "examples:\n"
        "  sharedvol whoami\n"
        "  sharedvol path unique results job_42.json\n"
        "  sharedvol lock /app/shared/locks/init.lock --timeout 60 -- Rscript start.R\n"
        "  sharedvol migrate run mysql://app@db/shop /app/migrations\n"
        "  sharedvol status /app/shared\n"
        "  sharedvol doctor /app/shared\n"
        "  sharedvol lint compose.yaml compose.prod.yaml\n\n"
        "exit codes: 0 done, 1 an error (one line on standard error), 2 wrong usage, 74 the output cannot be\n"
        "written, 130 interrupted by Ctrl-C; `lock`, `migrate`, `status`, `doctor` and `lint` have more",
    )
    parser.add_argument("--version", action="version", version=f"sharedvol {sharedvol.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_whoami(commands)
    _add_path(commands)
    _add_lock(commands)
    about = (
        "Apply database migrations once, however many replicas start.\n\n" + migrate_command.ABOUT.partition("\n\n")[2]
    )
    migrate_command.add_arguments(_command(commands, "migrate", about, migrate_command.EXIT_CODES))
    status_command.add_arguments(_command(commands, "status", status_command.ABOUT, status_command.EXIT_CODES))
    lint_command.add_arguments(_command(commands, "lint", lint_command.ABOUT, lint_command.EXIT_CODES))
    doctor_command.add_arguments(_command(commands, "doctor", doctor_command.ABOUT, doctor_command.EXIT_CODES))
    return parser


def _command(
    parent: argparse._SubParsersAction[argparse.ArgumentParser] | None, name: str, about: str, epilog: str
) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    if parent is None:
        return Parser(prog=name, description=about, epilog=epilog, formatter_class=form)
    summary = about.partition("\n")[0].rstrip(".:")
    return parent.add_parser(name, help=summary, description=about, epilog=epilog, formatter_class=form)


# whoami


def _add_whoami(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "whoami",
        "Show what identifies this container and process.\n\n"
        "The container's name comes from HOSTNAME, else the host name, else the container id in\n"
        "/proc/self/mountinfo; never from a constant.",
        "The worker token is another in every process, so in every call of this command.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_whoami)


def _whoami(options: argparse.Namespace) -> int:
    identity = sharedvol.whoami()
    if options.json:
        write_line(json.dumps(identity.as_dict()))
        return 0
    made = "" if identity.raw == identity.container else f", made safe from {identity.raw!r}"
    write_line(f"container    {identity.container}  (from {identity.source}{made})")
    write_line(f"worker       {identity.worker}")
    write_line(f"pid          {identity.pid}")
    write_line(f"incarnation  {identity.incarnation or 'unknown: no /proc here'}")
    return 0


# path


def _add_path(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "path",
        "Build or take apart a path that no other replica makes.",
        "examples:\n"
        "  $ sharedvol path unique results job_42.json\n"
        "  results/job_42_3f9c0d1e2b4a_u5k2m9x0q7t1vz-1.json\n"
        "  $ sharedvol path container results job_7.json\n"
        "  results/job_7_3f9c0d1e2b4a.json\n"
        "  $ sharedvol path log logs\n"
        "  logs/3f9c0d1e2b4a_20260131.log\n"
        "  $ sharedvol path parse results/job_7_3f9c0d1e2b4a.json",
    )
    forms = parser.add_subparsers(title="forms", metavar="FORM", required=True)
    for form, about in (
        ("unique", "A path unique across containers, workers, restarts and calls."),
        ("container", "A path unique between containers; the form that R builds."),
    ):
        sub = _command(forms, form, about, "")
        sub.add_argument("directory", metavar="DIRECTORY", help="where the file is to be; need not exist")
        sub.add_argument("name", metavar="NAME", help="the file's name, such as job_42.json")
        sub.set_defaults(run=_build, form=form)
    sub = _command(forms, "log", "Today's log of this container; the form that R builds.", "")
    sub.add_argument("directory", metavar="DIRECTORY", help="where the file is to be; need not exist")
    sub.set_defaults(run=_build, form="log")
    sub = _command(forms, "parse", "What a name says of its maker.", "exit code 1: it has none of the forms")
    sub.add_argument("path", metavar="PATH", help="a path or file name")
    sub.add_argument("--container", action="append", metavar="NAME", help="believe only this container (repeatable)")
    sub.add_argument("--json", action="store_true", help="print a JSON object")
    sub.set_defaults(run=_parse)


def _build(options: argparse.Namespace) -> int:
    if options.form == "unique":
        path = sharedvol.unique_path(options.directory, options.name)
    elif options.form == "container":
        path = sharedvol.container_path(options.directory, options.name)
    else:
        path = sharedvol.log_path(options.directory)
    if sys.stdout.isatty():
        write_line(str(path))
    else:
        sys.stdout.buffer.write(bytes(path) + b"\n")  # names need not be text
    return 0


def _parse(options: argparse.Namespace) -> int:
    parsed = dataclasses.asdict(sharedvol.parse_name(Path(options.path), containers=options.container))
    told = {key: value.isoformat() if isinstance(value, date) else value for key, value in parsed.items()}
    if options.json:
        write_line(json.dumps(told))
    else:
        for key, value in told.items():
            if value is not None:
                write_line(f"{key:10} {value}")
    return 0


# lock


def _add_lock(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "lock",
        "Run a command while holding a lock that Python, R and shell respect.\n\n"
        "Takes flock(2) and the fcntl(2) lock on PATH, created where it is missing and never deleted.\n"
        "The command holds them too: if this wrapper is killed, the lock lasts until the command ends.",
        "examples:\n"
        "  sharedvol lock /app/shared/locks/init.lock -- Rscript start.R\n"
        "  sharedvol lock /app/shared/locks/index.lock --shared --timeout 5 -- ./read-index\n"
        "  sharedvol lock /app/shared/locks/load.lock --fenced --purpose 'nightly load' -- \\\n"
        "      sh -c './load --token $SHAREDVOL_LOCK_TOKEN'\n\n"
        "exit codes: the command's own, or\n"
        "  2    wrong usage\n"
        "  74   the lock file cannot be opened or locked, or the lock was lost while the command ran\n"
        "  75   the lock was not free in time\n"
        "  126  the command cannot be executed\n"
        "  127  the command was not found\n"
        "  128+n  the command was killed by signal n",
    )
    parser.add_argument("path", metavar="PATH", help="the lock file; not the data it protects")
    parser.add_argument("--shared", action="store_true", help="hold it together with other shared holders")
    parser.add_argument(
        "--fenced", action="store_true", help="give the command a fencing token, in SHAREDVOL_LOCK_TOKEN"
    )
    parser.add_argument(
        "--purpose",
        default="",
        metavar="TEXT",
        help="with --fenced: what `sharedvol status` is to say that it is for, at most 200 characters",
    )
    parser.add_argument(
        "--allow-network", action="store_true", help="do not warn, or refuse, where PATH is on a network file system"
    )
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="wait so many seconds at most; 0: not at all")
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="the program and its arguments; -- before it may be left out"
    )
    parser.set_defaults(run=_lock, fail=parser.error)


def _separated(arguments: Sequence[str]) -> list[str]:
    """Insert the ``--`` that may be left out before the command of ``lock``: its options are not ours."""
    given = list(arguments)
    if given[:1] != ["lock"]:
        return given
    place, paths = 1, 0
    while place < len(given) and given[place] != "--":
        if not given[place].startswith("-"):
            paths += 1
            if paths == 2:
                return [*given[:place], "--", *given[place:]]
        elif any(name.startswith(given[place]) for name in ("--timeout", "--purpose")):
            place += 1  # its value
        place += 1
    return given


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: give 0 or more")
    return seconds


def _lock(options: argparse.Namespace) -> int:
    if options.purpose and not options.fenced:
        options.fail("--purpose needs --fenced: a plain lock has nowhere to say it")
    try:
        lock = FileLock(
            options.path,
            timeout=options.timeout,
            shared=options.shared,
            fenced=options.fenced,
            purpose=options.purpose,
            allow_network=options.allow_network,
        )
    except ValueError as error:  # --fenced with --shared, a purpose that is too long
        options.fail(str(error))
    try:
        return run_locked(lock, options.command)
    except CannotRun as error:
        return _fail(str(error), error.code)
    except LockTimeout as error:
        return _fail(str(error), EXIT_TIMEOUT)
    except LockError as error:
        return _fail(str(error), EXIT_LOCK_FILE)


def _fail(message: str, code: int) -> int:
    write_error(message)
    return code
