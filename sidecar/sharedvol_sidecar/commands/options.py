"""``--config``: the settings file and the secrets, for the commands that need a few of the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sharedvol_sidecar.commands.exit import EXIT_CONFIG, CommandFailed
from sharedvol_sidecar.config.settings import FLAG, collect, variable
from sharedvol_sidecar.errors import ConfigError

_SOURCES = "sharedvol_sidecar.sources"


def config_option(command: Callable[..., None]) -> Callable[..., None]:
    """Takes from the file, or from a secret, what is given neither by flag nor by variable."""
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="SHAREDVOL_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_defaults,
        help="The TOML file of the service's settings.",
    )(command)


def _defaults(context: click.Context, parameter: click.Parameter, config: Path | None) -> None:
    try:
        given = collect({}, config)
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    repeated = {one.name for one in context.command.params if one.multiple}
    context.default_map = {name: _as_given(value, name in repeated) for name, (value, _) in given.items()}
    context.meta[_SOURCES] = {name: source for name, (_, source) in given.items()}


def source_of(context: click.Context, parameter: click.Parameter) -> str:
    """Return where an option's value comes from, as `settings.collect` names it: ``flag``, a variable, or the file."""
    name = parameter.name or ""
    source = context.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return FLAG
    if source is ParameterSource.ENVIRONMENT:
        return variable(name)
    found: str = context.meta.get(_SOURCES, {}).get(name, "")
    return found


def _as_given(value: Any, repeated: bool) -> Any:
    """Return a value as the command line would give it: text, of an option that is given several times a list."""
    if isinstance(value, list):
        return [str(part) for part in value]
    return str(value).split() if repeated else str(value)
