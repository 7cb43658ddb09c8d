"""The commands ``config show`` and ``config check``."""

from __future__ import annotations

from typing import Any

import click

from sharedvol import SharedVolError
from sharedvol.database.url import without_secrets
from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.catalog.session import read_url
from sharedvol_sidecar.commands.collect import settings_options
from sharedvol_sidecar.commands.exit import EXIT_CONFIG, EXIT_FAILED, CommandFailed, report, say, say_json
from sharedvol_sidecar.config.network_mounts import network_warnings
from sharedvol_sidecar.config.resolve import resolve
from sharedvol_sidecar.config.settings import FIELDS, Settings, collect, load
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.humanize import plain


@click.group(name="config")
def config_command() -> None:
    """Look at the settings: show what holds and where it comes from, or check that it can be run with."""


@config_command.command(name="show")
@settings_options(run=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(as_json: bool, **flags: Any) -> None:
    """Print each setting, and where it comes from. Passwords are left out.

    \b
      sharedvol-sidecar config show --config sidecar.toml

    Exit codes: 0 done, 2 wrong settings.
    """
    settings, sources = _loaded(flags, options=False)
    shown = {name: _shown(settings, name) for name in FIELDS}
    if as_json:
        say_json({name: {"value": shown[name], "from": sources[name]} for name in FIELDS})
        return
    width = max(map(len, FIELDS))
    for name in FIELDS:
        say(f"{name:{width}}  {plain(_in_words(shown[name])):40}  {plain(sources[name])}".rstrip())


@config_command.command(name="check")
@settings_options(run=True)
def check_command(**flags: Any) -> None:
    """Check the settings, the directories and the catalog, as `run` would at its start. Nothing is moved.

    \b
      sharedvol-sidecar config check --from /vol/spool --to /vol/collected

    Exit codes: 0 good, 1 the catalog cannot be used now, 2 wrong settings or directories.
    """
    settings, _ = _loaded(flags)
    try:
        work = resolve(settings)
        for warning in network_warnings(work, settings):
            report(f"warning: {warning.path!r} {warning.detail}")
        if work.catalog is not None:
            Catalog.open(work.catalog, open_root(settings.to)).close()
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    except SharedVolError as error:
        raise CommandFailed(str(error), EXIT_FAILED) from None
    except OSError as error:
        raise CommandFailed(f"cannot use {str(settings.to)!r}: {describe(error)}", EXIT_FAILED) from None
    say("the settings are good")


def _loaded(flags: dict[str, Any], *, options: bool = True) -> tuple[Settings, dict[str, str]]:
    config = flags.pop("config", None)
    named = {name.rstrip("_"): value for name, value in flags.items()}
    try:
        settings = load(named, config, options=options)
        given = collect(named, config)
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    return settings, {name: given[name][1] if name in given else "default" for name in FIELDS}


def _shown(settings: Settings, name: str) -> Any:
    value = getattr(settings, "from_" if name == "from" else name)
    if name == "catalog":
        return _without_password(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _without_password(url: str) -> str:
    return url if url in ("", "none") else without_secrets(read_url(url, options=False))


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value) or "-"
    return "-" if value in (None, "") else str(value)
