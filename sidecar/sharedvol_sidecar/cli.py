"""The command ``sharedvol-sidecar``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click

import sharedvol
from sharedvol.cli.terminal import conclude, write_error
from sharedvol.environment import mistyped
from sharedvol.text import message

_NAME = "sharedvol-sidecar"
_COMMANDS = {
    "once": "collect",
    "run": "collect",
    "ls": "catalog",
    "verify": "catalog",
    "rebuild": "catalog",
    "prune": "prune",
    "config": "config",
    "health": "health",
    "demo": "demo",
}


class _Commands(click.Group):
    """Loads a command's module when it is called, because a frequent health check must not load a database."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        if cmd_name == "run":
            # Until the service handles it: SIGTERM does not end process 1 of a container by default.
            signal.signal(signal.SIGTERM, _leave)
        loaded = importlib.import_module(f"sharedvol_sidecar.commands.{module}")
        command: click.Command = getattr(loaded, f"{cmd_name}_command")
        return command

    def main(self, *args: Any, **options: Any) -> Any:
        options.setdefault("prog_name", _NAME)
        run = functools.partial(super().main, *args, **options)
        sys.exit(conclude(_NAME, run))

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _escaped():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _escaped():
            return super().invoke(ctx)


@contextlib.contextmanager
def _escaped() -> Iterator[None]:
    """Escape the arguments that click's errors repeat, and hide the credentials of URLs in them."""
    try:
        yield
    except click.ClickException as error:
        error.message = message(error.message)  # type: ignore[misc] # click declares it final, but it can be set
        raise


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)  # the service has not started


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sharedvol.__version__, prog_name=_NAME)
@click.pass_context
def main(context: click.Context) -> None:
    """Move finished files of container replicas out of a shared volume without losing any.

    \b
    The spool has a directory for each container, or flat directories with the
    container in the file's name:
      SPOOL/<container>/results/**    SPOOL/results/job_7_<container>.json
      SPOOL/<container>/logs/**       SPOOL/logs/<container>_20260131.log

    A file is moved when no process has it open for writing and it was renamed or
    linked into place, or has not changed for a while. No file is ever
    overwritten. Logs that stay open are followed while they grow.
    """
    # `run` logs them, and `health` is called every few seconds by a container engine.
    if context.invoked_subcommand not in ("run", "health"):
        for name, meant in mistyped(os.environ):
            write_error(f"warning: nothing reads the environment variable {name!r}; did you mean {meant}?", _NAME)
