"""The command ``sharedvol path``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from datetime import date
from pathlib import Path

import sharedvol
from sharedvol.cli.common import Commands, add_command
from sharedvol.cli.terminal import write_line


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "path",
        "Build or parse a path that is unique to this replica.",
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
        ("unique", "Build a path that is unique across containers, workers, restarts and calls."),
        ("container", "Build a path that is unique across containers, in the form that R uses."),
    ):
        sub = add_command(forms, form, about, "")
        sub.add_argument("directory", metavar="DIRECTORY", help="the file's directory; it need not exist")
        sub.add_argument("name", metavar="NAME", help="the file's name, such as job_42.json")
        sub.set_defaults(run=_build, form=form)
    sub = add_command(forms, "log", "Build the path of this container's log of today, in the form that R uses.", "")
    sub.add_argument("directory", metavar="DIRECTORY", help="the file's directory; it need not exist")
    sub.set_defaults(run=_build, form="log")
    sub = add_command(
        forms, "parse", "Show which container and process made a name.", "exit code 1: the name has none of the forms"
    )
    sub.add_argument("path", metavar="PATH", help="a path or file name")
    sub.add_argument(
        "--container", action="append", metavar="NAME", help="accept only names of this container (repeatable)"
    )
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
    fields = {key: value.isoformat() if isinstance(value, date) else value for key, value in parsed.items()}
    if options.json:
        write_line(json.dumps(fields))
    else:
        for key, value in fields.items():
            if value is not None:
                write_line(f"{key:10} {value}")
    return 0
