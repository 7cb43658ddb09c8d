"""The command ``sharedvol-sidecar``."""

from __future__ import annotations

import importlib

import click

import sharedvol

_COMMANDS = {
    "once": "collect_commands",
    "run": "collect_commands",
    "ls": "catalog_commands",
    "verify": "catalog_commands",
    "rebuild": "catalog_commands",
    "prune": "retention_command",
    "config": "config_commands",
    "health": "health_command",
    "demo": "demo_command",
}


class _Commands(click.Group):
    """Loads a command's module when it is called: a health check every few seconds needs no database."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"sharedvol_sidecar.{module}"), f"{cmd_name}_command")
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sharedvol.__version__, prog_name="sharedvol-sidecar")
def main() -> None:
    """Move finished files of container replicas out of a shared volume, and lose nothing.

    \b
    The spool holds a directory per container, or flat ones with the container in
    the file's name:
      SPOOL/<container>/results/**    SPOOL/results/job_7_<container>.json
      SPOOL/<container>/logs/**       SPOOL/logs/<container>_20260131.log

    A file moves when nobody has it open for writing and it was renamed or linked
    into place, or has been quiet for a while. No file is ever overwritten. Logs
    that stay open are followed as they grow.
    """
