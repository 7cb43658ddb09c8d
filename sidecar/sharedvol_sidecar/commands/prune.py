"""The command ``sharedvol-sidecar prune``."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from sharedvol.cli.terminal import Progress
from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.commands.catalog import add_indexes, opened
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, CommandFailed, finish
from sharedvol_sidecar.commands.options import catalog_options, source_of
from sharedvol_sidecar.commands.output import PROGRESS_EVERY, report, say, say_json
from sharedvol_sidecar.config.loading import FLAG, named
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.humanize import plain, size, time_words
from sharedvol_sidecar.retention.pruner import Counts, Expired, Pruned, apply, plan
from sharedvol_sidecar.retention.relief import make_room, readable
from sharedvol_sidecar.retention.rules import Rule, parse_rules


class _Report:
    """Prints and counts what becomes of each expired file."""

    def __init__(self, as_json: bool) -> None:
        self.counts = Counts()
        self._as_json = as_json
        self._progress = Progress(sys.stderr, every=PROGRESS_EVERY)

    def __call__(self, pruned: Pruned) -> None:
        self.counts.add(pruned)
        if self._as_json:
            self.end()
            say_json({**_described(pruned.expired), "outcome": pruned.outcome, "detail": pruned.detail})
        elif pruned.outcome not in ("deleted", "gone"):
            self.end()
            report(f"{pruned.outcome}: {escape(pruned.expired.row.path)}: {plain(pruned.detail)}")
        self._progress(f"deleted {self.counts.deleted:,} files, {size(self.counts.bytes)}")

    def end(self) -> None:
        """Remove the line of progress."""
        self._progress.end()


def _rules(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[Rule, ...]:
    try:
        return parse_rules(value)
    except ConfigError as error:
        source = source_of(context, parameter)
        where = "" if source == FLAG else f"{named('keep', source)}: "
        raise CommandFailed(f"{where}{error}", EXIT_CONFIG) from None


@click.command(name="prune")
@catalog_options
@click.option(
    "--keep",
    metavar="RULE",
    multiple=True,
    required=True,
    callback=_rules,
    help="What to keep of a kind: results=90d, logs=20G, logs=14d,20G. Give one for each kind. Without "
    "it, the setting keep is used.",
)
@click.option("--apply", "really", is_flag=True, help="Delete the files. Without it nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each file, and one with the sums.")
def prune_command(to: Path, catalog: str | None, keep: tuple[Rule, ...], really: bool, as_json: bool) -> None:
    """Delete collected files that are too old or too large together. By default only list them.

    A file that is not in the catalog, or that was changed since it was collected, is never deleted. Kinds without a
    rule are kept. A file's age counts from when it was collected. Units of sizes are powers of 1,024.

    \b
      sharedvol-sidecar prune --to /vol/collected --keep results=90d --keep logs=14d,20G
      sharedvol-sidecar prune --to /vol/collected --keep results=90d --apply

    Exit codes: 0 done, 1 a file was left or something failed, 2 wrong settings.
    """
    now = time.time_ns()
    done = _Report(as_json)
    counts = done.counts
    with finish():
        if not really:
            with opened(to, catalog, create=False, read=readable) as (rows, root):
                _dry_run(plan(rows, keep, now), as_json)
            return
        try:
            if to.is_dir():  # else `opened` reports it
                with open_root(to) as root:
                    for pruned in itertools.chain.from_iterable(make_room(catalog, root, keep, now)):
                        done(pruned)
            with opened(to, catalog, create=False) as (rows, root):
                add_indexes(rows)
                apply(rows, root, plan(rows, keep, now), done)
        finally:
            done.end()
    if as_json:
        say_json({"summary": {**counts.as_dict(), "applied": True}})
    else:
        say(f"deleted {counts.deleted} files, {size(counts.bytes)}")
        for count, text in ((counts.gone, "rows of missing files: deleted"), (counts.left, "changed: left")):
            if count:
                say(f"  {count} {text}")
    if not counts.good:
        sys.exit(EXIT_FAILED)


def _dry_run(expired: Iterator[Expired], as_json: bool) -> None:
    files = total = 0
    for one in expired:
        files, total = files + 1, total + one.row.size
        if as_json:
            say_json({**_described(one), "outcome": "would_delete", "detail": ""})
        else:
            say(f"{escape(one.row.path)}  {size(one.row.size)}  {plain(one.why)}")
    if as_json:
        say_json({"summary": {"would_delete": files, "bytes": total, "applied": False}})
    else:
        say(f"would delete {files} files, {size(total)}; to delete them, add --apply")


def _described(expired: Expired) -> dict[str, object]:
    row = expired.row
    return {
        "path": escape(row.path),
        "kind": escape(row.kind),
        "size": row.size,
        "collected_at": time_words(row.collected_at),
        "why": expired.why,
    }
