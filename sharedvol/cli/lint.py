"""The command ``sharedvol lint``.

The rules are imported when it runs, so that the other commands start without them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import Final

from sharedvol.cli.common import Commands, add_command
from sharedvol.cli.terminal import write_error, write_line

SEVERITIES: Final = ("error", "warning", "note")
READERS: Final = ("auto", "compose", "files")
EXIT_FINDINGS: Final = 1
EXIT_UNREADABLE: Final = 2
_LEAST: Final = 2**20  # bytes; every host has more

ABOUT: Final = """Check compose files for hazards that appear when a service has replicas.

The rules find fixed ports and names, shared files without an owner, start-ups and shut-downs that lose
requests, and limits that are too small for all replicas. Each rule has a stable id and a page in docs/lint
that explains it and says what to do.

Files are merged in their order, as `docker compose -f FILE -f FILE` does. Docker Compose reads them if it is
installed, otherwise a built-in parser does. A comment accepts a finding on its own line, on the line below, for
a service (on the service's first line) or for a file (at the top of the file):
  # sharedvol: ignore SV012 each replica writes below its own directory"""

EXIT_CODES: Final = """examples:
  sharedvol lint compose.yaml
  sharedvol lint compose.yaml compose.prod.yaml --replicas api=8 --host-memory 16G
  sharedvol lint compose.yaml --script start.sh --script deploy.sh
  sharedvol lint --explain SV012

exit codes:
  0    no finding is as severe as --fail-on
  1    at least one finding is as severe as --fail-on
  2    wrong usage, or a file that cannot be read or is not a compose file"""

# Compose searches in this order, and then for an override of any name.
_BASES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES: Final = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "lint", ABOUT, EXIT_CODES)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="compose files (default: compose.yaml and compose.override.yaml)"
    )
    parser.add_argument(
        "--script", action="append", default=[], metavar="FILE", help="also check this shell script (repeatable)"
    )
    parser.add_argument(
        "--replicas",
        action="append",
        default=[],
        type=_replicas,
        metavar="SERVICE=N",
        help="check the service as if it had N replicas (repeatable)",
    )
    parser.add_argument(
        "--host-memory",
        type=_size,
        metavar="SIZE",
        help="memory of the host, such as 16G (default: that of this machine)",
    )
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help="read this file instead of .env (repeatable)"
    )
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="check only services of this profile and services without a profile (repeatable)",
    )
    parser.add_argument(
        "--fail-on",
        choices=[*SEVERITIES, "never"],
        default="warning",
        help="exit with 1 if any finding is at least this severe (default warning)",
    )
    parser.add_argument(
        "--reader",
        choices=READERS,
        default="auto",
        help="read the files with docker compose, or with the built-in parser (files)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0")
    form.add_argument("--list-rules", action="store_true", help="print all rules and check nothing")
    form.add_argument("--explain", metavar="ID", help="print the explanation of a rule and check nothing")
    parser.set_defaults(run=_run, fail=parser.error)


def _replicas(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not (name and equals and number.isascii() and number.isdigit() and len(number) < 7):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of replicas: use the form api=4")
    return name, int(number)


def _size(text: str) -> int:
    from sharedvol.lint.compose.node import Node

    size = Node(text).bytes
    if not size or size < _LEAST or text.strip()[-1:].isdecimal():  # 16 would be 16 bytes
        raise argparse.ArgumentTypeError(f"{text!r} is not a size with a unit: use the form 16G")
    return size


def _run(options: argparse.Namespace) -> int:
    from sharedvol.lint.report import explanation, table
    from sharedvol.lint.rules import EVERY

    if options.list_rules:
        return _print(table(EVERY))
    if options.explain:
        wanted = [rule for rule in EVERY if rule.id == options.explain.upper()]
        if not wanted:
            options.fail(f"there is no rule {options.explain!r}: use --list-rules to see all rules")
        return _print(explanation(wanted[0]))
    if not options.files:
        options.files = _default_files() or options.fail("there is no compose.yaml in this directory: name the files")
    return _check(options)


def _check(options: argparse.Namespace) -> int:
    from sharedvol.lint import LintError, Options, Severity, lint
    from sharedvol.lint.rules import EVERY
    from sharedvol.lint.sarif import sarif

    chosen = Options(
        scripts=options.script,
        replicas=dict(options.replicas),
        host_memory=options.host_memory,
        env_files=options.env_file,
        profiles=options.profile,
        reader=options.reader,
    )
    try:
        report = lint(options.files, chosen)
    except LintError as error:
        write_error(str(error))
        return EXIT_UNREADABLE
    if options.json:
        _print([json.dumps(report.as_dict(), indent=2)])
    elif options.sarif:
        _print([json.dumps(sarif(report, EVERY), indent=2)])
    else:
        _print(report.lines())
    if options.fail_on == "never":
        return 0
    return EXIT_FINDINGS if report.at_least(Severity[options.fail_on]) else 0


def _default_files() -> list[str]:
    found = [next((name for name in names if os.path.exists(name)), None) for names in (_BASES, _OVERRIDES)]
    return [name for name in found if name is not None] if found[0] else []


def _print(lines: Iterable[str]) -> int:
    for text in lines:
        for line in text.split("\n"):  # JSON and explanations have several lines; text from the files has none
            write_line(line, sys.stdout)
    return 0
