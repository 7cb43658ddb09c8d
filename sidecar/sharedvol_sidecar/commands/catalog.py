"""The commands ``ls``, ``verify`` and ``rebuild`` of ``sharedvol-sidecar``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from sharedvol.cli.terminal import Progress
from sharedvol.errors import describe, remedy
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters
from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.catalog.files import CollectedFiles
from sharedvol_sidecar.catalog.rebuild import Rebuild
from sharedvol_sidecar.catalog.verify import PROBLEMS, Verification
from sharedvol_sidecar.commands.exit import EXIT_FAILED, finish
from sharedvol_sidecar.commands.options import catalog_options, filter_options
from sharedvol_sidecar.commands.output import (
    PROGRESS_EVERY,
    as_json_row,
    byte_counter,
    finding_reporter,
    report,
    say,
    say_json,
)
from sharedvol_sidecar.destination.template import DEFAULT, Template
from sharedvol_sidecar.destination.template_inverse import TemplateInverse
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.follow.seals import RecordedCopies
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.private import PRIVATE
from sharedvol_sidecar.humanize import parse_moment, plain, size, time_words

_QUIET = 2.0  # seconds after which a note says what takes so long


@click.command(name="ls")
@catalog_options
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each file.")
def ls_command(to: Path, catalog: str | None, as_json: bool, **filters: Any) -> None:
    """List the collected files, oldest first.

    \b
      sharedvol-sidecar ls --to /vol/collected --kind results --since 7d

    Exit codes: 0 done, 1 the catalog cannot be read, 2 wrong settings.
    """
    with finish():
        chosen = _chosen(filters)
        with opened(to, catalog, create=False) as (rows, _):
            for row in rows.rows(chosen):
                if as_json:
                    say_json(as_json_row(row))
                else:
                    container = escape(row.container) or "-"
                    say(
                        f"{time_words(row.collected_at):20}  {size(row.size):>10}  {escape(row.kind) or '-':8}  "
                        f"{container:12}  {escape(row.path)}"
                    )


@click.command(name="verify")
@catalog_options
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each finding, and one with the counts.")
def verify_command(to: Path, catalog: str | None, as_json: bool, **filters: Any) -> None:
    """Read every file in the catalog and compare its size and SHA-256.

    Reports changed and missing files and, without filters, files that are not in the catalog. For rows without a
    digest, only the size is compared. Nothing is changed.

    \b
      sharedvol-sidecar verify --to /vol/collected

    Exit codes: 0 every file is as it was collected, 1 a file is not or cannot be read, 2 wrong settings.
    """
    with finish():
        chosen = _chosen(filters)
        with opened(to, catalog, create=False) as (rows, root), _progress() as progress:
            count, show = byte_counter(progress, _bytes_of(rows, chosen)), finding_reporter(progress, as_json)
            work = Verification(rows, CollectedFiles(root), RecordedCopies(), show, count)
            work.catalogued(chosen)
            if chosen == Filters():
                work.uncatalogued()
    counts = work.counts
    if as_json:
        say_json({"summary": counts.as_dict()})
    else:
        compared = f"compared {counts.files} files, read {size(counts.bytes)}"
        say(compared + f"; {counts.without_digest} by size alone" * bool(counts.without_digest))
        found = [f"{getattr(counts, name)} {name}" for name in PROBLEMS if getattr(counts, name)]
        say(", ".join(found) or "all is as it was collected")
        if counts.unwatched:
            say(f"{counts.unwatched} followed logs are not finished, and no running sidecar sees them")
    if not counts.good:
        sys.exit(EXIT_FAILED)


@click.command(name="rebuild")
@catalog_options
@click.option(
    "--template",
    metavar="TEMPLATE",
    default=DEFAULT,
    show_default=True,
    envvar="SHAREDVOL_TEMPLATE",
    help="The template that named the files. Kind and container of files without a row are read from it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each change, and one with the counts.")
def rebuild_command(to: Path, catalog: str | None, template: str, as_json: bool) -> None:
    """Repair the catalog by reading every file.

    Adds a row for each file without one and deletes each row without a file. Rows that are right stay as they are. No
    file is changed. Sidecars may run meanwhile.

    \b
      sharedvol-sidecar rebuild --to /vol/collected

    Exit codes: 0 done, 1 something cannot be read, 2 wrong settings.
    """
    with finish():
        inverse = TemplateInverse(Template(template))
        with opened(to, catalog, create=True) as (rows, root), _progress() as progress:
            add_indexes(rows)
            show = finding_reporter(progress, as_json)
            work = Rebuild(rows, CollectedFiles(root), inverse, show, byte_counter(progress))
            counts = work.run()
    if as_json:
        say_json({"summary": counts.as_dict()})
    else:
        say(f"read {counts.files} files, {size(counts.bytes)}")
        changes = ("kept", "added", "replaced", "completed", "dropped", "unreadable")
        say("rows: " + ", ".join(f"{getattr(counts, name)} {name}" for name in changes))
    if counts.unreadable:
        sys.exit(EXIT_FAILED)


@contextlib.contextmanager
def opened(
    to: Path,
    url: str | None,
    *,
    create: bool,
    read: Callable[[str | None, Directory], AbstractContextManager[Catalog]] | None = None,
) -> Iterator[tuple[Catalog, Directory]]:
    """Open the catalog and the destination's root.

    Args:
        to: the destination.
        url: of the catalog.
        create: create a missing catalog.
        read: opens the catalog instead, only for reading.

    Raises:
        ConfigError: the destination cannot be opened, or is not the one of the catalog.
        CatalogError: the catalog cannot be opened.
    """
    try:
        root = open_root(to)
    except OSError as error:
        hint = remedy(error, ENOENT="name the destination, or mount its volume", ENOTDIR="name the destination")
        raise ConfigError(f"--to {str(to)!r}: {describe(error)}; {hint}") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(root)
        if read is not None:
            catalog = stack.enter_context(read(url, root))
        else:
            catalog = stack.enter_context(contextlib.closing(Catalog.open(url, root, create=create)))
        # If the volume is not mounted, the empty mount point must not look as if all files were deleted.
        if root.inode(PRIVATE) is None and catalog.count():
            raise ConfigError(
                f"--to {str(to)!r} has no {PRIVATE}, and the catalog {catalog.label} has rows: mount its volume; if it "
                f"was restored without, make {PRIVATE} with mode 700"
            )
        yield catalog, root


def add_indexes(catalog: Catalog) -> None:
    """Create the indexes that the catalog of an older release lacks. If that takes long or fails, print a note."""
    began, noted = time.monotonic(), False

    def note() -> None:
        nonlocal noted
        if not noted and time.monotonic() - began > _QUIET:
            noted = True
            report(f"creating the indexes of catalog {catalog.label}")

    try:
        catalog.add_indexes(note)
    except CatalogError as error:
        report(f"note: {plain(str(error))}; this command takes longer without it")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    progress = Progress(sys.stderr, every=PROGRESS_EVERY)
    try:
        yield progress
    finally:
        progress.end()


def _chosen(given: dict[str, Any]) -> Filters:
    now = time.time_ns()
    for flag in ("since", "until"):
        if given[flag] is not None:
            moment = parse_moment(given[flag], now)
            if moment is None:
                raise ConfigError(f"--{flag} {given[flag]!r} is not a time: say 2026-01-31, 2026-01-31T14:00, 2h or 7d")
            given[flag] = moment
    return Filters(**given)


def _bytes_of(catalog: Catalog, filters: Filters) -> int | None:
    """Return how many bytes will be read; None if files are chosen by name."""
    if filters.name is not None or filters.limit is not None:
        return None
    return catalog.total(filters)[1]
