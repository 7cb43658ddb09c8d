"""The command ``sharedvol-sidecar prune``."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.commands.catalog import add_indexes, catalog_options, finish, opened
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, CommandFailed, report, say, say_json
from sharedvol_sidecar.commands.options import source_of
from sharedvol_sidecar.config.settings import FLAG, named
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.humanize import plain, size, time_words
from sharedvol_sidecar.retention.pruner import Counts, Expired, Pruned, Rule, apply, parse_rules, plan
from sharedvol_sidecar.retention.relief import make_room, readable


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
    help="What to keep of a kind: results=90d, logs=20G, logs=14d,20G. Give one for each kind. Else the setting keep.",
)
@click.option("--apply", "really", is_flag=True, help="Delete. Without it nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each file, and one with the sums.")
def prune_command(to: Path, catalog: str | None, keep: tuple[Rule, ...], really: bool, as_json: bool) -> None:
    """Delete collected files that are too old or too many; by default only say which.

    Never touches a file that is not in the catalog, or that was changed since it was collected. Kinds without a
    rule are kept. Ages are counted from when a file was collected; sizes are in steps of 1,024.

    \b
      sharedvol-sidecar prune --to /vol/collected --keep results=90d --keep logs=14d,20G
      sharedvol-sidecar prune --to /vol/collected --keep results=90d --apply

    Exit codes: 0 done, 1 a file was left or something failed, 2 wrong settings.
    """
    with finish():
        now, counts = time.time_ns(), Counts()

        def tell(pruned: Pruned) -> None:
            counts.add(pruned)
            if as_json:
                say_json({**_described(pruned.expired), "outcome": pruned.outcome, "detail": pruned.detail})
            elif pruned.outcome not in ("deleted", "gone"):
                path = escape(pruned.expired.row.path)
                report(f"{pruned.outcome}: {path}: {plain(pruned.detail)}")

        if not really:
            with opened(to, catalog, create=False, read=readable) as (rows, root):
                _dry_run(plan(rows, keep, now), as_json)
            return
        if to.is_dir():  # else `opened` reports it
            with open_root(to) as root:
                for pruned in itertools.chain.from_iterable(make_room(catalog, root, keep, now)):
                    tell(pruned)
        with opened(to, catalog, create=False) as (rows, root):
            add_indexes(rows)
            apply(rows, root, plan(rows, keep, now), tell)
    if as_json:
        say_json({"summary": {**counts.as_dict(), "applied": True}})
    else:
        say(f"deleted {counts.deleted} files, {size(counts.bytes)}")
        for count, text in ((counts.gone, "rows of files that were gone: dropped"), (counts.left, "changed: left")):
            if count:
                say(f"  {count} {text}")
    if not counts.good:
        sys.exit(EXIT_FAILED)


def _dry_run(doomed: Iterator[Expired], as_json: bool) -> None:
    files = total = 0
    for one in doomed:
        files, total = files + 1, total + one.row.size
        if as_json:
            say_json({**_described(one), "outcome": "would_delete", "detail": ""})
        else:
            say(f"{escape(one.row.path)}  {size(one.row.size)}  {plain(one.why)}")
    if as_json:
        say_json({"summary": {"would_delete": files, "bytes": total, "applied": False}})
    else:
        say(f"would delete {files} files, {size(total)}; --apply does it")


def _described(doomed: Expired) -> dict[str, object]:
    row = doomed.row
    return {
        "path": escape(row.path),
        "kind": escape(row.kind),
        "size": row.size,
        "collected_at": time_words(row.collected_at),
        "why": doomed.why,
    }
