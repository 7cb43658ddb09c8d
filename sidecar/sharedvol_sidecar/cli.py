"""The command ``sharedvol-sidecar``."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import structlog
from tqdm import tqdm

import sharedvol
from sharedvol import SharedVolError
from sharedvol.errors import describe
from sharedvol_sidecar import service
from sharedvol_sidecar.collector import tune_memory
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.report import Event, Tally
from sharedvol_sidecar.settings import job, load
from sharedvol_sidecar.template import DEFAULT, FIELDS

EXIT_FAILED = 1
EXIT_CONFIG = 2

_FIELD_HELP = "\n".join(f"  {{{name}}}{' ' * (12 - len(name))}{text}" for name, text in FIELDS.items())


class _Failure(click.ClickException):
    """One line on standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self._code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # a class variable there, for which there is one code
        return self._code

    def show(self, file: Any = None) -> None:
        click.echo(f"sharedvol-sidecar: {_one_line(self.message)}", err=True)


# Numbers come as text: `settings` reads them, and says what is wrong in the same words as for the file.
_OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--from", "SPOOL", Path, "The directory that the replicas write below."),
    ("--to", "COLLECTED", Path, "The directory for the files: beside the spool, best on its file system."),
    ("--template", "TEMPLATE", str, f"Names in the destination. [default: {DEFAULT}]"),
    (
        "--quiet",
        "SECONDS",
        str,
        "A closed file is finished when it has not changed for so long; one that was renamed or linked into "
        "place is at once. [default: 2]",
    ),
    ("--kinds", "NAMES", str, "The sources' directories. [default: results,logs]"),
    (
        "--pattern",
        "REGEX",
        str,
        "For flat directories: how a file's name tells its container, with a group (?P<container>...). "
        "[default: the names that sharedvol and R build]",
    ),
    ("--workers", "N", str, "Processes that work on a backlog, 1 or 2. [default: 2]"),
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `once` and `run` share."""
    command = click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="SHAREDVOL_CONFIG",
        help="A TOML file with these settings.",
    )(command)
    for flag, metavar, kind, text in reversed(_OPTIONS):
        parameter = click.Path(path_type=Path) if kind is Path else kind
        # "from" is a keyword of Python, so its parameter is from_.
        name = flag[2:] + "_" * (flag == "--from")
        command = click.option(flag, name, metavar=metavar, type=parameter, help=text)(command)
    return command


_EPILOG = f"""\b
Each setting can be a flag (--quiet 5), an environment variable
(SHAREDVOL_QUIET=5) or a key of the TOML file (quiet = 5); the first wins.
\b
Template fields:
{_FIELD_HELP}
\b
Exit codes: 0 done, 1 something could not be moved, 2 wrong settings."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sharedvol.__version__, prog_name="sharedvol-sidecar")
def main() -> None:
    """Move finished files of container replicas out of a shared volume, and lose nothing.

    \b
    The spool holds a directory per container, or flat ones with the container in
    the file's name:
      SPOOL/<container>/results/**    SPOOL/results/job_7_<container>.json
      SPOOL/<container>/logs/**       SPOOL/logs/<container>_20260131.log

    A file moves when nobody has it open for writing and it was renamed or linked
    into place, or has been quiet for a while. No file is ever overwritten.
    """


@main.command(name="once", epilog=_EPILOG)
@_settings
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def once_command(as_json: bool, **flags: Any) -> None:
    """Collect all that is finished, print a summary, and end.

    Waits for files that were closed less than the quiet time ago; leaves files that are open for writing.

    \b
      sharedvol-sidecar once --from /vol/spool --to /vol/collected
    """
    work = _job(flags)
    tune_memory()
    with tqdm(desc="collected", unit=" files", delay=2, disable=None, leave=False) as bar:

        def tell(event: Event) -> None:
            with bar.external_write_mode(file=sys.stderr):
                click.echo(f"{event.name}: {_one_line(event.path)}{': ' * bool(event.path)}{event.detail}", err=True)

        def progress(tally: Tally) -> None:
            bar.update(tally.collected - bar.n)

        try:
            tally = service.once(work, tell, progress)
        except ConfigError as error:
            raise _Failure(str(error), EXIT_CONFIG) from None
        except SharedVolError as error:
            raise _Failure(str(error), EXIT_FAILED) from None
        except OSError as error:
            raise _unusable(error, EXIT_FAILED if bar.n else EXIT_CONFIG) from None
    if as_json:
        click.echo(json.dumps(tally.as_dict()))
    else:
        click.echo(summary(tally))
    if tally.failed:
        sys.exit(EXIT_FAILED)


@main.command(name="run", epilog=_EPILOG)
@_settings
@click.option("--interval", metavar="SECONDS", help="Scan so often when no event tells. [default: 5]")
@click.option("--verbose", is_flag=True, help="Log every collected file.")
def run_command(verbose: bool, **flags: Any) -> None:
    """Collect until SIGTERM or SIGINT; log JSON lines on standard output.

    The batch under way is finished first; a second signal ends at once, safely.

    \b
      sharedvol-sidecar run --from /vol/spool --to /vol/collected
    """
    settings = _load(flags)
    work = job_or_fail(settings)
    tune_memory()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
    )
    try:
        service.Service(work, settings.interval, tell_collected=verbose).run()
    except ConfigError as error:
        raise _Failure(str(error), EXIT_CONFIG) from None
    except SharedVolError as error:
        raise _Failure(str(error), EXIT_FAILED) from None
    except OSError as error:
        raise _unusable(error) from None


@main.command(name="demo")
@click.option("--replicas", default=4, show_default=True, type=click.IntRange(1, 32), help="How many write.")
@click.option("--seconds", default=6.0, show_default=True, type=click.FloatRange(2, 600), help="How long they write.")
@click.option("--keep", is_flag=True, help="Keep the volume, and say where it is.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def demo_command(replicas: int, seconds: float, keep: bool, as_json: bool) -> None:
    """Show it: replicas write, two sidecars collect, one is killed, and every file is accounted for.

    Exit code 0 if nothing was lost, doubled or overwritten, else 1.
    """
    from sharedvol_sidecar.demo import run_demo  # its processes are of no use to the other commands

    sys.exit(run_demo(replicas, seconds, keep=keep, as_json=as_json))


def summary(tally: Tally) -> str:
    """The counts for people: what was done, and what was left and why."""
    lines = [f"collected {tally.collected} files, {_size(tally.bytes)}"]
    details = [
        (tally.kept_both, "kept beside another file of the same name"),
        (tally.copied, "copied from another file system"),
        (tally.recovered, "taken over from a sidecar that died"),
        (tally.unleased, "judged by the quiet time alone, without a lease"),
    ]
    lines += [f"  {count} {text}" for count, text in details if count]
    left = [
        (tally.writing, "open for writing"),
        (tally.settling, "changed a moment ago"),
        (tally.unmatched, "in no source, or without a container in their name"),
        (tally.refused, "no regular files"),
        (tally.unfinished, "unfinished, of a writer that died"),
        (tally.failed, "failed"),
    ]
    lines += [f"left {count}: {text}" for count, text in left if count]
    return "\n".join(lines)


def _load(flags: dict[str, Any]) -> Any:
    config = flags.pop("config", None)
    try:
        return load({name.rstrip("_"): value for name, value in flags.items()}, config)
    except ConfigError as error:
        raise _Failure(str(error), EXIT_CONFIG) from None


def job_or_fail(settings: Any) -> Any:
    """The job, or exit code 2 with the reason in one line."""
    try:
        return job(settings)
    except ConfigError as error:
        raise _Failure(str(error), EXIT_CONFIG) from None


def _job(flags: dict[str, Any]) -> Any:
    return job_or_fail(_load(flags))


def _unusable(error: OSError, code: int = EXIT_CONFIG) -> _Failure:
    where = f" {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    return _Failure(f"cannot go on{where}: {describe(error)}; see that --from and --to can be written", code)


def _one_line(text: str) -> str:
    """``text`` without what would break the line or drive the terminal: file names are not to be trusted."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
