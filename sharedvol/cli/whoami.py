"""The command ``sharedvol whoami``."""

from __future__ import annotations

import argparse
import json

import sharedvol
from sharedvol.cli.common import Commands, add_command
from sharedvol.cli.terminal import write_line


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "whoami",
        "Show what identifies this container and process.\n\n"
        "The container's name comes from HOSTNAME, else the host name, else the container id in\n"
        "/proc/self/mountinfo; never from a constant.",
        "The worker token differs in every process, so it differs in every call of this command.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
