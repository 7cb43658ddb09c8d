"""The entry point of the command ``sharedvol``: it reads the arguments and runs a subcommand."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import sharedvol
from sharedvol.cli import doctor, lint, lock, migrate, path, status, whoami
from sharedvol.cli.common import add_command, fail
from sharedvol.cli.terminal import EXIT_ERROR, conclude, write_error
from sharedvol.environment import mistyped
from sharedvol.errors import SharedVolError, describe

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return conclude("sharedvol", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(lock.separate(sys.argv[1:] if arguments is None else arguments))
    for name, meant in mistyped(os.environ):
        write_error(f"warning: nothing reads the environment variable {name!r}; did you mean {meant}?")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
        return code
    except migrate.UsageError as error:
        return fail(str(error), EXIT_USAGE)
    except SharedVolError as error:
        return fail(str(error), EXIT_ERROR)
    except BrokenPipeError:
        raise  # the program that reads the output has ended
    except OSError as error:
        where = "" if error.filename is None else f" with {error.filename!r}"
        return fail(f"cannot continue{where}: {describe(error)}", EXIT_ERROR)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a Python warning in one line, without the file and line in sharedvol that issued it."""
    write_error(f"warning: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = add_command(
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
        "exit codes: 0 success, 1 error (one line on standard error), 2 wrong usage, 74 the output cannot be\n"
        "written, 130 interrupted by Ctrl-C; `lock`, `migrate`, `status`, `doctor` and `lint` have more",
    )
    parser.add_argument("--version", action="version", version=f"sharedvol {sharedvol.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (whoami, path, lock, migrate, status, lint, doctor):
        command.add(commands)
    return parser
