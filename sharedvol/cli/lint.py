"""The command ``sharedvol lint``.

What it needs is imported when it runs: the rules are many, and the other commands start without them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import Final

from sharedvol.cli.terminal import write_error, write_line

SEVERITIES: Final = ("error", "warning", "note")
READERS: Final = ("auto", "compose", "files")
EXIT_FINDINGS: Final = 1
_LEAST: Final = 2**20  # bytes that any host has
EXIT_UNREADABLE: Final = 2

ABOUT: Final = """Look in compose files for what replicas would trip over.

Fixed ports and names, shared files without an owner, start-up and shut-down that lose requests, limits that
do not add up. Each rule has an id that stays and a page in docs/lint that says why and what to do.

Files are merged in their order, as `docker compose -f FILE -f FILE` does. Where a docker with compose is there
it reads them, else they are read here. A comment accepts a finding on its line, on the line below, for the
service whose first line it is at, or for the file whose head it is at:
  # sharedvol: ignore SV012 each replica writes below its own directory"""

EXIT_CODES: Final = """examples:
  sharedvol lint compose.yaml
  sharedvol lint compose.yaml compose.prod.yaml --replicas api=8 --host-memory 16G
  sharedvol lint compose.yaml --script start.sh --script deploy.sh
  sharedvol lint --explain SV012

exit codes:
  0    nothing of the severity that --fail-on says, or worse
  1    findings of that severity, or worse
  2    wrong usage, or a file that cannot be read or is no compose file"""

# In this order Compose looks for them, and the second beside any of the first.
_BASES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES: Final = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="compose files (default: compose.yaml and compose.override.yaml)"
    )
    parser.add_argument(
        "--script", action="append", default=[], metavar="FILE", help="a shell script to look at, too (repeatable)"
    )
    parser.add_argument(
        "--replicas",
        action="append",
        default=[],
        type=_replicas,
        metavar="SERVICE=N",
        help="look at the service as if it had N replicas (repeatable)",
    )
    parser.add_argument(
        "--host-memory", type=_size, metavar="SIZE", help="of the machine it runs on, as 16G (default: this machine's)"
    )
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help="in the place of .env (repeatable)"
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="only services of this profile, and of none"
    )
    parser.add_argument(
        "--fail-on",
        choices=[*SEVERITIES, "never"],
        default="warning",
        help="the mildest severity that makes the exit code 1 (default warning)",
    )
    parser.add_argument(
        "--reader", choices=READERS, default="auto", help="who reads the files: docker compose, or this command itself"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0")
    form.add_argument("--list-rules", action="store_true", help="print every rule, and look at nothing")
    form.add_argument("--explain", metavar="ID", help="print all about a rule, and look at nothing")
    parser.set_defaults(run=_run, fail=parser.error)


def _replicas(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not (name and equals and number.isascii() and number.isdigit() and len(number) < 7):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of replicas: give it as api=4")
    return name, int(number)


def _size(text: str) -> int:
    from sharedvol.lint.compose.node import Node

    size = Node(text).bytes
    if not size or size < _LEAST or text.strip()[-1:].isdecimal():  # 16 would be 16 bytes
        raise argparse.ArgumentTypeError(f"{text!r} is not a size with a unit: give it as 16G")
    return size


def _run(options: argparse.Namespace) -> int:
    from sharedvol.lint.report import explanation, table
    from sharedvol.lint.rules import EVERY

    if options.list_rules:
        return _print(table(EVERY))
    if options.explain:
        wanted = [rule for rule in EVERY if rule.id == options.explain.upper()]
        if not wanted:
            options.fail(f"there is no rule {options.explain!r}: --list-rules shows them")
        return _print(explanation(wanted[0]))
    if not options.files:
        options.files = _default_files() or options.fail("there is no compose.yaml here: name the files")
    return _look(options)


def _look(options: argparse.Namespace) -> int:
    from sharedvol.lint import LintError, Options, Severity, lint
    from sharedvol.lint.rules import EVERY
    from sharedvol.lint.sarif import sarif

    asked = Options(
        scripts=options.script,
        replicas=dict(options.replicas),
        host_memory=options.host_memory,
        env_files=options.env_file,
        profiles=options.profile,
        reader=options.reader,
    )
    try:
        report = lint(options.files, asked)
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
        for line in text.split("\n"):  # of JSON and explanations: what others wrote has no line breaks by now
            write_line(line, sys.stdout)
    return 0
