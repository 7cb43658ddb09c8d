"""The command ``sharedvol status``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

from sharedvol.cli.common import Commands, add_command
from sharedvol.cli.terminal import Progress, write_error, write_line
from sharedvol.errors import describe, remedy
from sharedvol.locks import Holder
from sharedvol.text import shown
from sharedvol.volume.record import Replica
from sharedvol.volume.status import KINDS, Backlog, LockStatus, Status, read_status

EXIT_DIRECTORY: Final = 66  # EX_NOINPUT of sysexits.h

ABOUT: Final = """Show which replicas of a volume are alive, which locks are held, and which files wait.

A replica is listed if it joined the volume (Volume.join in Python). The kernel reports which replicas are
alive and which locks are held. The command changes nothing and disturbs no process. It can name the process
that holds a lock only if it can see that process, for example on the host. Holders of fenced locks and of
semaphores record their replica, their purpose and the time of acquisition.

Backlog: the files in DIR/<container>/<kind>/** and in DIR/<kind>/**, where the file's name contains the
container. Names that begin with a dot do not count."""

EXIT_CODES: Final = """exit codes:
  0    success, even if no replica ever joined
  1    the register of replicas cannot be read, or this is not Linux
  2    wrong usage
  66   DIR is missing, is not a directory, or cannot be read"""

_EVERY: Final = 1000  # entries between two updates of the progress


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "status", ABOUT, EXIT_CODES)
    parser.add_argument("directory", metavar="DIR", help="the volume")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default=KINDS,
        metavar="NAMES",
        help=f"the kinds of files to count, separated by commas (default {','.join(KINDS)})",
    )
    parser.set_defaults(run=_run)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not all(kind and "/" not in kind and not kind.startswith(".") for kind in kinds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of directory names: use the form results,logs")
    return kinds


def _run(options: argparse.Namespace) -> int:
    try:
        with os.scandir(options.directory):
            pass
    except OSError as error:
        hint = remedy(error, ENOTDIR="name the volume's directory", EACCES="run this as a user that may read it")
        write_error(f"cannot read {options.directory!r}: {describe(error)}; {hint}")
        return EXIT_DIRECTORY
    progress = Progress(sys.stderr, every=0.2)
    try:
        status = read_status(options.directory, options.kinds, _counted(progress))
    finally:
        progress.end()
    for line in [json.dumps(status.as_dict())] if options.json else _in_words(status):
        write_line(line, sys.stdout)
    return 0


def _counted(progress: Progress) -> Callable[[], None]:
    """Return a function that counts its calls and shows the count."""
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        if count % _EVERY == 0:
            progress(f"read {count:,} entries")

    return call


def _in_words(status: Status) -> Iterator[str]:
    alive = sum(replica.alive for replica in status.replicas)
    yield f"{shown(status.directory)}: {alive} alive, {len(status.replicas) - alive} dead"
    yield from _table("replicas", [_replica(one) for one in status.replicas])
    unnamed = [slot for slot, name in status.slots.items() if name is None]
    if unnamed:
        yield f"slots held by unknown replicas: {', '.join(map(str, unnamed))}"
    held = [lock for lock in status.locks if lock.state != "free"]
    yield from _table("locks", [[shown(lock.path), _holders(lock)] for lock in held])
    yield f"{len(status.locks) - len(held)} of {len(status.locks)} lock files are free"
    states = {replica.name: "alive" if replica.alive else "dead" for replica in status.replicas}
    yield from _table("backlog", [_backlog(one, states) for one in status.backlog])
    yield f"{sum(one.files for one in status.backlog):,} files wait"
    if not status.complete:
        yield "incomplete: some directories cannot be read, or have too many entries"


def _table(title: str, rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if rows:
        yield title
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _replica(one: Replica) -> list[str]:
    slot = "slot ?" if one.slot is None else f"slot {one.slot}"
    since = one.joined_at.strftime("since %Y-%m-%d %H:%M:%S %Z") if one.joined_at else "since ?"
    return [shown(one.name), "alive" if one.alive else "dead", slot, since, shown(one.purpose)]


def _holders(lock: LockStatus) -> str:
    if lock.state == "unknown":
        return "cannot be read"
    known = [
        f"process {one['pid']}" + (f" of {shown(one['replica'])}" if one["replica"] else "") for one in lock.holders
    ]
    if lock.holder is None:
        return f"{lock.state}, by {', '.join(known) or 'a process in another container'}"
    return f"{lock.state}, by {', '.join([*known, *_recorded(lock.holder)])}"


def _recorded(holder: Holder) -> Iterator[str]:
    """Yield what the holder recorded about itself."""
    yield f"replica {shown(holder.replica or '?')}"
    if holder.purpose:
        yield f'for "{shown(holder.purpose)}"'
    if holder.since:
        yield holder.since.strftime("since %Y-%m-%d %H:%M:%S %Z")


def _backlog(one: Backlog, states: dict[str, str]) -> list[str]:
    container = "(unknown container)" if one.container is None else shown(one.container)
    state = states.get(one.container or "", "never joined")
    return [container, state, one.kind, f"{one.files:,} files", f"{one.bytes:,} bytes"]
