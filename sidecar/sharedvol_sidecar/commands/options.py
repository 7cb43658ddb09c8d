"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sharedvol_sidecar.commands.exit import EXIT_CONFIG, CommandFailed, exit_on_error, finish
from sharedvol_sidecar.commands.output import report
from sharedvol_sidecar.config.loading import FLAG, collect, load, named
from sharedvol_sidecar.config.network_mounts import catalog_directory, warnings_for
from sharedvol_sidecar.config.settings import Settings, variable
from sharedvol_sidecar.errors import ConfigError

Command = Callable[..., None]

_SOURCES = "sharedvol_sidecar.sources"

_FILTERS: tuple[tuple[str, str, Any, str], ...] = (
    ("--kind", "KIND", str, "Only files of this kind: results, logs."),
    ("--container", "NAME", str, "Only files of this container."),
    ("--name", "GLOB", str, "Only files whose name matches: '*.json'. With a slash, the path has to match."),
    ("--since", "WHEN", str, "Collected at this time or later: 2026-01-31, 2026-01-31T14:00 (UTC), or 2h, 7d ago."),
    ("--until", "WHEN", str, "Collected before this time."),
    ("--limit", "N", click.IntRange(min=0), "At most this many, the oldest."),
)


def settings_options(*, run: bool) -> Callable[[Command], Command]:
    """Add a flag for each setting, and ``--config``.

    Args:
        run: also add the flags that only ``run`` uses.
    """

    def add(command: Command) -> Command:
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
            # Values stay text: `load` parses them, so its messages are the same as for the file.
            command = click.option(
                f"--{name.rstrip('_').replace('_', '-')}",
                name,
                metavar=extra["metavar"],
                type=click.Path(path_type=Path) if field.annotation is Path else str,
                help=f"{field.description}{shown}",
            )(command)
        return command

    return add


def given_settings(flags: dict[str, Any]) -> Settings:
    """Return the settings, or end the command with exit code 2."""
    config = flags.pop("config", None)
    with exit_on_error():
        return load({name.rstrip("_"): value for name, value in flags.items()}, config)


def config_option(command: Command) -> Command:
    """Add ``--config``: the file, or a secret, is the default of options that are not given."""
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="SHAREDVOL_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_set_defaults,
        help="The TOML file of the service's settings.",
    )(command)


def catalog_options(command: Command) -> Command:
    """Add the options that say where the files and the catalog are, and whether network file systems are accepted."""
    command = _network_options(command)
    command = click.option(
        "--catalog",
        metavar="URL",
        envvar="SHAREDVOL_CATALOG",
        callback=_checked_url,
        help="mysql://user@host/database, or sqlite:///file. [default: COLLECTED/.sharedvol/catalog.db]",
    )(command)
    command = click.option(
        "--to",
        metavar="COLLECTED",
        required=True,
        envvar="SHAREDVOL_TO",
        type=click.Path(path_type=Path),
        help="The directory that files were collected into.",
    )(command)
    return config_option(command)


def _network_options(command: Command) -> Command:
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


def filter_options(command: Command) -> Command:
    """Add the options that choose rows."""
    for flag, metavar, kind, text in reversed(_FILTERS):
        command = click.option(flag, metavar=metavar, type=kind, help=text)(command)
    return command


def source_of(context: click.Context, parameter: click.Parameter) -> str:
    """Return where an option's value comes from, as `collect` names it: ``flag``, a variable, or the file."""
    name = parameter.name or ""
    source = context.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return FLAG
    if source is ParameterSource.ENVIRONMENT:
        return variable(name)
    found: str = context.meta.get(_SOURCES, {}).get(name, "")
    return found


def _set_defaults(context: click.Context, parameter: click.Parameter, config: Path | None) -> None:
    with exit_on_error():
        given = collect({}, config)
    repeated = {one.name for one in context.command.params if one.multiple}
    context.default_map = {name: _as_given(value, name in repeated) for name, (value, _) in given.items()}
    context.meta[_SOURCES] = {name: source for name, (_, source) in given.items()}


def _as_given(value: Any, repeated: bool) -> Any:
    """Return a value as the command line would give it: text, or a list of texts for a repeated option."""
    if isinstance(value, list):
        return [str(part) for part in value]
    return str(value).split() if repeated else str(value)


def _checked_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from sharedvol_sidecar.catalog.url import check_url  # loads SQLAlchemy, which `once` may do without

    if value == "none":
        raise CommandFailed("there is no catalog: the setting 'catalog' is none", EXIT_CONFIG)
    try:
        check_url(value or "")
    except ConfigError as error:
        raise CommandFailed(f"{named('catalog', source_of(context, parameter))}: {error}", EXIT_CONFIG) from None
    return value
