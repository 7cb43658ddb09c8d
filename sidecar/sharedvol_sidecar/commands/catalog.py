"""The commands ``ls``, ``verify`` and ``rebuild`` of ``sharedvol-sidecar``.

JSON is one object a line. Names are escaped as in the catalog (``%XX`` for what cannot be printed), so that
every line is valid UTF-8.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from sharedvol import SharedVolError
from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters, Row
from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.catalog.files import CollectedFiles
from sharedvol_sidecar.catalog.rebuild import Rebuild
from sharedvol_sidecar.catalog.session import check_url
from sharedvol_sidecar.catalog.verify import PROBLEMS, Finding, Verification
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, CommandFailed, report, say, say_json, unusable
from sharedvol_sidecar.commands.options import config_option, source_of
from sharedvol_sidecar.config.network_mounts import catalog_directory, warnings_for
from sharedvol_sidecar.config.settings import Settings, named, variable
from sharedvol_sidecar.destination.template import DEFAULT, Template
from sharedvol_sidecar.destination.template_inverse import TemplateInverse
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.follow.seals import RecordedCopies
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.private import PRIVATE
from sharedvol_sidecar.humanize import parse_moment, plain, size, time_words

_QUIET = 2.0  # seconds without a word at most

_FILTERS: tuple[tuple[str, str, Any, str], ...] = (
    ("--kind", "KIND", str, "Only of this kind: results, logs."),
    ("--container", "NAME", str, "Only of this container."),
    ("--name", "GLOB", str, "Only files of such a name: '*.json'; with a slash it is for the path."),
    ("--since", "WHEN", str, "Collected then or later: 2026-01-31, 2026-01-31T14:00 (UTC), or 2h, 7d ago."),
    ("--until", "WHEN", str, "Collected before."),
    ("--limit", "N", click.IntRange(min=0), "So many at most, the oldest."),
)


def catalog_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that tell where files and catalog are, and what to do if that is a network file system."""
    command = _network_options(command)
    command = click.option(
        "--catalog",
        metavar="URL",
        envvar="SHAREDVOL_CATALOG",
        callback=_usable,
        help="mysql://user@host/database, or sqlite:///file. [default: COLLECTED/.sharedvol/catalog.db]",
    )(command)
    return config_option(_to_option(command))


def _to_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--to",
        metavar="COLLECTED",
        required=True,
        envvar="SHAREDVOL_TO",
        type=click.Path(path_type=Path),
        help="The directory that files were collected into.",
    )(command)


def _network_options(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def checked(*, allow_network: bool, strict: bool, **options: Any) -> None:
        with finish():
            directories = (os.fspath(options["to"]), *catalog_directory(options["catalog"]))
            for event in () if allow_network else warnings_for(directories, strict=strict):
                report(f"warning: {event.path!r} {event.detail}")
        command(**options)

    for name in ("strict", "allow_network"):
        flag, field = f"--{name.replace('_', '-')}", Settings.model_fields[name]
        text, default = field.description, field.default
        checked = click.option(
            flag, metavar="BOOL", type=bool, default=default, envvar=variable(name), help=text, show_default=True
        )(checked)
    return checked


def _usable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value == "none":
        raise CommandFailed("there is no catalog: the setting 'catalog' is none", EXIT_CONFIG)
    try:
        check_url(value or "")
    except ConfigError as error:
        raise CommandFailed(f"{named('catalog', source_of(context, parameter))}: {error}", EXIT_CONFIG) from None
    return value


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose rows."""
    for flag, metavar, kind, text in reversed(_FILTERS):
        command = click.option(flag, metavar=metavar, type=kind, help=text)(command)
    return command


@click.command(name="ls")
@catalog_options
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each file.")
def ls_command(to: Path, catalog: str | None, as_json: bool, **filters: Any) -> None:
    """List what was collected, the oldest first.

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
    """Read every catalogued file again, and compare its size and SHA-256.

    Says what was changed, what is missing and, without filters, which files are in no catalog. Rows without a
    digest are compared by size. Nothing is changed.

    \b
      sharedvol-sidecar verify --to /vol/collected

    Exit codes: 0 all is as it was collected, 1 it is not, or cannot be read, 2 wrong settings.
    """
    with finish():
        chosen = _chosen(filters)
        with opened(to, catalog, create=False) as (rows, root), _bar(_bytes_of(rows, chosen)) as bar:
            work = Verification(rows, CollectedFiles(root), RecordedCopies(), _teller(bar, as_json), bar.update)
            work.catalogued(chosen)
            if chosen == Filters():
                work.uncatalogued()
    counts = work.counts
    if as_json:
        say_json({"summary": counts.as_dict()})
    else:
        compared = f"compared {counts.files} files, read {size(counts.bytes)}"
        say(compared + f"; {counts.without_digest} by size alone" * bool(counts.without_digest))
        said = [f"{getattr(counts, name)} {name}" for name in PROBLEMS if getattr(counts, name)]
        say(", ".join(said) or "all is as it was collected")
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
    help="What the files were named by: tells kind and container of those without a row.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each change, and one with the counts.")
def rebuild_command(to: Path, catalog: str | None, template: str, as_json: bool) -> None:
    """Make the catalog true again by reading every file.

    Files without a row get one, rows without a file go, and rows that are right stay as they are. No file is
    touched. Sidecars may go on meanwhile.

    \b
      sharedvol-sidecar rebuild --to /vol/collected

    Exit codes: 0 done, 1 something cannot be read, 2 wrong settings.
    """
    with finish():
        inverse = TemplateInverse(Template(template))
        with opened(to, catalog, create=True) as (rows, root), _bar(None) as bar:
            add_indexes(rows)
            work = Rebuild(rows, CollectedFiles(root), inverse, _teller(bar, as_json), bar.update)
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
def finish() -> Iterator[None]:
    """Errors as one line and an exit code; a reader that went away (``ls | head``) is no error."""
    try:
        yield
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    except SharedVolError as error:
        raise CommandFailed(str(error), EXIT_FAILED) from None
    except BrokenPipeError:
        pass
    except OSError as error:
        raise unusable(error, EXIT_FAILED) from None


@contextlib.contextmanager
def opened(
    to: Path,
    url: str | None,
    *,
    create: bool,
    read: Callable[[str | None, Directory], AbstractContextManager[Catalog]] | None = None,
) -> Iterator[tuple[Catalog, Directory]]:
    """The catalog and the destination's root.

    Args:
        to: the destination.
        url: of the catalog.
        create: whether a catalog that is missing is made.
        read: opens the catalog instead, only to read it.

    Raises:
        ConfigError: the destination is none, or not the one of the catalog.
        CatalogError: the catalog cannot be opened.
    """
    try:
        root = open_root(to)
    except OSError as error:
        raise ConfigError(f"--to {str(to)!r}: {describe(error)}; name the destination, or mount its volume") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(root)
        if read is not None:
            catalog = stack.enter_context(read(url, root))
        else:
            catalog = stack.enter_context(contextlib.closing(Catalog.open(url, root, create=create)))
        # An empty mount point in the place of the destination must not look as if all files were deleted.
        if root.inode(PRIVATE) is None and catalog.count():
            raise ConfigError(
                f"--to {str(to)!r} has no {PRIVATE}, and the catalog {catalog.label} has rows: mount its volume; if it "
                f"was restored without, make {PRIVATE} with mode 700"
            )
        yield catalog, root


def add_indexes(catalog: Catalog) -> None:
    """Make the indexes that the catalog of an older release lacks; what takes long, or fails, is a note."""
    began, noted = time.monotonic(), False

    def note() -> None:
        nonlocal noted
        if not noted and time.monotonic() - began > _QUIET:
            noted = True
            report(f"making the indexes of catalog {catalog.label}")

    try:
        catalog.add_indexes(note)
    except CatalogError as error:
        report(f"note: {plain(str(error))}; this command takes longer without")


def as_json_row(row: Row) -> dict[str, Any]:
    """A row as ``ls --json`` prints it."""
    return {
        "path": escape(row.path),
        "kind": escape(row.kind),
        "container": escape(row.container),
        "original": escape(row.original),
        "size": row.size,
        "sha256": row.sha256,
        "mtime_ns": row.mtime_ns,
        "collected_at": time_words(row.collected_at),
        "collected_at_ns": row.collected_at,
        "encoding": row.encoding,
        "original_size": row.original_size,
    }


def _chosen(given: dict[str, Any]) -> Filters:
    now = time.time_ns()
    for flag in ("since", "until"):
        if given[flag] is not None:
            moment = parse_moment(given[flag], now)
            if moment is None:
                raise ConfigError(f"--{flag} {given[flag]!r} is no time: say 2026-01-31, 2026-01-31T14:00, 2h or 7d")
            given[flag] = moment
    return Filters(**given)


def _bytes_of(catalog: Catalog, filters: Filters) -> int | None:
    """What there is to read, for the bar; not known where names are chosen."""
    if filters.name is not None or filters.limit is not None:
        return None
    return catalog.total(filters)[1]


def _bar(total: int | None) -> Any:
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False)


def _teller(bar: Any, as_json: bool) -> Callable[[Finding], None]:
    def tell(finding: Finding) -> None:
        with bar.external_write_mode(file=sys.stderr):
            if as_json:
                say_json({"problem": finding.problem, "path": escape(finding.path), "detail": finding.detail})
            else:
                say(f"{finding.problem}: {escape(finding.path)}: {plain(finding.detail)}")

    return tell
