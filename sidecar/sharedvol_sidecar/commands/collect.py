"""The commands ``once`` and ``run``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import structlog
from tqdm import tqdm

from sharedvol import SharedVolError
from sharedvol.environment import mistyped
from sharedvol_sidecar.collect import once
from sharedvol_sidecar.collect.collector import tune_memory
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, CommandFailed, report, say, say_json, unusable
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.config.network_mounts import network_warnings
from sharedvol_sidecar.config.resolve import resolve
from sharedvol_sidecar.config.settings import PREFIX, Settings, load
from sharedvol_sidecar.counters import COUNTERS, PassCounts
from sharedvol_sidecar.destination.template import FIELDS
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.event import Event, EventKind
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.humanize import plain, size
from sharedvol_sidecar.monitor.deduplicator import Deduplicator
from sharedvol_sidecar.monitor.service_log import set_up
from sharedvol_sidecar.service import service

_FIELD_HELP = "\n".join(f"  {{{name}}}{' ' * (12 - len(name))}{text}" for name, text in FIELDS.items())

_EPILOG = f"""\b
Each setting can be a flag (--quiet 5), an environment variable
({PREFIX}QUIET=5, or {PREFIX}QUIET_FILE with a file that holds it) or
a key of the TOML file (quiet = 5); the first wins.
\b
Template fields:
{_FIELD_HELP}
\b
Exit codes: 0 done, 1 something could not be moved, 2 wrong settings."""


def settings_options(*, run: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A flag for each setting, and ``--config``."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command = click.option(
            "--config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            envvar="SHAREDVOL_CONFIG",
            help="A TOML file with these settings.",
        )(command)
        for name, field in reversed(Settings.model_fields.items()):
            extra: Any = field.json_schema_extra
            if extra["run"] and not run:
                continue
            default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
            shown = f" [default: {default}]" if default not in (None, "") and not field.is_required() else ""
            # Values come as text: `settings` reads them, and says what is wrong in the same words as for the file.
            command = click.option(
                f"--{name.rstrip('_').replace('_', '-')}",
                name,
                metavar=extra["metavar"],
                type=click.Path(path_type=Path) if field.annotation is Path else str,
                help=f"{field.description}{shown}",
            )(command)
        return command

    return add


@click.command(name="once", epilog=_EPILOG)
@settings_options(run=False)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def once_command(as_json: bool, **flags: Any) -> None:
    """Collect all that is finished, print a summary, and end.

    Waits for files that were closed less than the quiet time ago; leaves files that are open for writing, and
    follows open logs as far as they are.

    \b
      sharedvol-sidecar once --from /vol/spool --to /vol/collected
    """
    settings = given_settings(flags)
    work = as_job(settings)
    tune_memory()
    repeated: Counter[EventKind] = Counter()
    with tqdm(desc="collected", unit=" files", delay=2, disable=None, leave=False) as bar:

        def show(event: Event) -> None:
            if event.kind is Events.FOLLOWED:
                return
            if event.kind.repeats:
                repeated[event.kind] += 1
                if repeated[event.kind] > Deduplicator.ALL:
                    return  # the processes that write the spool decide how often it happens
            with bar.external_write_mode(file=sys.stderr):
                report(f"{event.name}: {plain(event.path)}{': ' * bool(event.path)}{plain(event.detail)}")

        def progress(counts: PassCounts) -> None:
            bar.update(counts.collected - bar.n)

        try:
            for warning in network_warnings(work, settings):
                Events(show).network_file_system(warning.path, warning.detail)
            counts = once.once(work, show, progress)
        except ConfigError as error:
            raise CommandFailed(str(error), EXIT_CONFIG) from None
        except SharedVolError as error:
            raise CommandFailed(str(error), EXIT_FAILED) from None
        except OSError as error:
            raise unusable(error, EXIT_FAILED if bar.n else EXIT_CONFIG) from None
    for kind, count in repeated.items():
        if count > Deduplicator.ALL:
            report(f"{kind.name}: and {count - Deduplicator.ALL:,} more")
    if as_json:
        say_json(counts.as_dict())
    else:
        for line in summary(counts).splitlines():
            say(line)
    if counts.failed or counts.uncatalogued:
        sys.exit(EXIT_FAILED)


@click.command(name="run", epilog=_EPILOG)
@settings_options(run=True)
@click.option("--verbose", is_flag=True, help="Log every file, and every pass that collected one.")
def run_command(verbose: bool, **flags: Any) -> None:
    """Collect until SIGTERM or SIGINT; log JSON lines on standard output.

    Logs problems, and one line a minute about what was collected.

    Serves health checks, metrics and a status page over HTTP on --listen. The batch under way is finished first; a
    second signal ends at once, safely.

    \b
      sharedvol-sidecar run --from /vol/spool --to /vol/collected
    """
    settings = given_settings(flags)
    work = as_job(settings)
    tune_memory()
    output = set_up(verbose)
    for name, meant in mistyped(os.environ):
        structlog.get_logger().warning("unknown_variable", name=name, meant=meant)
    try:
        service.Service(work, service.Timing.of(settings), settings, lambda: output.state).run()
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    except SharedVolError as error:
        raise CommandFailed(str(error), EXIT_FAILED) from None
    except OSError as error:
        raise unusable(error, EXIT_CONFIG) from None


def summary(counts: PassCounts) -> str:
    """Return the counts for people: what was done, and what was left and why."""
    lines = [f"collected {counts.collected} files, {size(counts.bytes)}"]
    for counter in COUNTERS:
        count = getattr(counts, counter.name)
        if count and counter.line:
            lines.append(counter.line.format(size(count) if counter.unit == "bytes" else count))
    return "\n".join(lines)


def given_settings(flags: dict[str, Any]) -> Settings:
    """The settings, or exit code 2 with the reason in one line."""
    config = flags.pop("config", None)
    try:
        return load({name.rstrip("_"): value for name, value in flags.items()}, config)
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None


def as_job(settings: Settings) -> CollectorConfig:
    """The job, or exit code 2 with the reason in one line."""
    try:
        return resolve(settings)
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
