"""The commands ``once`` and ``run``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import click
import structlog

from sharedvol import SharedVolError
from sharedvol.cli.terminal import Progress
from sharedvol.environment import mistyped
from sharedvol_sidecar.collect import once
from sharedvol_sidecar.collect.collector import tune_memory
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, exit_on_error, unusable
from sharedvol_sidecar.commands.options import given_settings, settings_options
from sharedvol_sidecar.commands.output import PROGRESS_EVERY, report, say, say_json
from sharedvol_sidecar.config.network_mounts import network_warnings
from sharedvol_sidecar.config.resolve import resolve
from sharedvol_sidecar.config.settings import PREFIX
from sharedvol_sidecar.counters import COUNTERS, PassCounts
from sharedvol_sidecar.destination.template import FIELDS
from sharedvol_sidecar.event import Event, EventKind
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.humanize import plain, size
from sharedvol_sidecar.monitor.deduplicator import Deduplicator
from sharedvol_sidecar.monitor.service_log import set_up
from sharedvol_sidecar.service import service
from sharedvol_sidecar.service.timing import Timing

_FIELD_HELP = "\n".join(f"  {{{name}}}{' ' * (12 - len(name))}{text}" for name, text in FIELDS.items())

_EPILOG = f"""\b
Each setting can be a flag (--quiet 5), an environment variable
({PREFIX}QUIET=5, or {PREFIX}QUIET_FILE=PATH of a file with the value)
or a key of the TOML file (quiet = 5). The first one wins.
\b
Template fields:
{_FIELD_HELP}
\b
Exit codes: 0 done, 1 a file could not be moved, 2 wrong settings."""


@click.command(name="once", epilog=_EPILOG)
@settings_options(run=False)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def once_command(as_json: bool, **flags: Any) -> None:
    """Collect all finished files, print a summary, and exit.

    Waits for files that were closed less than the quiet time ago. Leaves files that are open for writing, and copies
    what open logs contain now.

    \b
      sharedvol-sidecar once --from /vol/spool --to /vol/collected
    """
    settings = given_settings(flags)
    with exit_on_error():
        work = resolve(settings)
    tune_memory()
    display = _Display()
    with exit_on_error():
        try:
            for warning in network_warnings(work, settings):
                Events(display.show).network_file_system(warning.path, warning.detail)
            counts = once.once(work, display.show, display.count)
        except OSError as error:
            if isinstance(error, SharedVolError):
                raise
            # Until a file was collected, the directories themselves are the likely cause.
            raise unusable(error, EXIT_FAILED if display.collected else EXIT_CONFIG) from None
        finally:
            display.end()
    display.show_rest()
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
    """Collect until SIGTERM or SIGINT, and log JSON lines on standard output.

    Logs problems, and one line a minute about what was collected.

    Serves health checks, metrics and a status page over HTTP on --listen. A signal ends it after the current batch. A
    second signal ends it at once, which is safe.

    \b
      sharedvol-sidecar run --from /vol/spool --to /vol/collected
    """
    settings = given_settings(flags)
    with exit_on_error():
        work = resolve(settings)
    tune_memory()
    output = set_up(verbose)
    for name, meant in mistyped(os.environ):
        structlog.get_logger().warning("unknown_variable", name=name, meant=meant)
    with exit_on_error(EXIT_CONFIG):
        service.Service(work, Timing.of(settings), settings, lambda: output.state).run()


class _Display:
    """Shows what `once` does: a line for each event, repeated ones only so often, and progress on a terminal."""

    def __init__(self) -> None:
        self.collected = 0
        self._progress = Progress(sys.stderr, every=PROGRESS_EVERY)
        self._repeated: Counter[EventKind] = Counter()

    def show(self, event: Event) -> None:
        """Print an event."""
        if event.kind is Events.FOLLOWED:
            return
        if event.kind.repeats:
            self._repeated[event.kind] += 1
            if self._repeated[event.kind] > Deduplicator.ALL:
                return  # the processes that write the spool decide how often it happens
        self._progress.end()
        report(f"{event.name}: {plain(event.path)}{': ' * bool(event.path)}{plain(event.detail)}")

    def show_rest(self) -> None:
        """Print how often the repeated events happened that were not printed."""
        for kind, count in self._repeated.items():
            if count > Deduplicator.ALL:
                report(f"{kind.name}: and {count - Deduplicator.ALL:,} more")

    def count(self, counts: PassCounts) -> None:
        """Show how many files are collected."""
        self.collected = counts.collected
        self._progress(f"collected {counts.collected:,} files")

    def end(self) -> None:
        """Remove the line of progress."""
        self._progress.end()


def summary(counts: PassCounts) -> str:
    """Return the counts as lines: what was collected, and what was left and why."""
    lines = [f"collected {counts.collected} files, {size(counts.bytes)}"]
    for counter in COUNTERS:
        count = getattr(counts, counter.name)
        if count and counter.line:
            lines.append(counter.line.format(size(count) if counter.unit == "bytes" else count))
    return "\n".join(lines)
