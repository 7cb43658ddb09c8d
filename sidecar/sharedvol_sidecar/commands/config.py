"""The commands ``config show`` and ``config check``."""

from __future__ import annotations

from typing import Any

import click

from sharedvol.database.url import without_secrets
from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.catalog.url import read_url
from sharedvol_sidecar.commands.exit import exit_on_error
from sharedvol_sidecar.commands.options import settings_options
from sharedvol_sidecar.commands.output import report, say, say_json
from sharedvol_sidecar.config.loading import collect, load
from sharedvol_sidecar.config.network_mounts import network_warnings
from sharedvol_sidecar.config.resolve import resolve
from sharedvol_sidecar.config.settings import FIELDS, Settings
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.humanize import plain


@click.group(name="config")
def config_command() -> None:
    """Show the settings and where they come from, or check that the sidecar can run with them."""


@config_command.command(name="show")
@settings_options(run=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(as_json: bool, **flags: Any) -> None:
    """Print each setting and where it comes from, without passwords.

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
    """Check the settings, the directories and the catalog as `run` does when it starts. Nothing is moved.

    \b
      sharedvol-sidecar config check --from /vol/spool --to /vol/collected

    Exit codes: 0 good, 1 the catalog cannot be used now, 2 wrong settings or directories.
    """
    settings, _ = _loaded(flags)
    with exit_on_error():
        work = resolve(settings)
        for warning in network_warnings(work, settings):
            report(f"warning: {warning.path!r} {warning.detail}")
        if work.catalog is not None:
            Catalog.open(work.catalog, open_root(settings.to)).close()
    say("the settings are good")


def _loaded(flags: dict[str, Any], *, options: bool = True) -> tuple[Settings, dict[str, str]]:
    config = flags.pop("config", None)
    named = {name.rstrip("_"): value for name, value in flags.items()}
    with exit_on_error():
        settings = load(named, config, options=options)
        given = collect(named, config)
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
