"""Load the settings: from flags, else from the environment (``SHAREDVOL_…``), else from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sharedvol.errors import describe
from sharedvol_sidecar.config.secret import SECRET, read_variable
from sharedvol_sidecar.config.settings import FIELDS, PREFIX, Settings, variable
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.humanize import toml_problem

FLAG = "flag"
"""The source of a value that was given on the command line."""

_NAMES = ", ".join(FIELDS)


def collect(flags: dict[str, Any], config: Path | None) -> dict[str, tuple[Any, str]]:
    """Return the given values by name, each with its source: ``flag``, the variable, or the file.

    Args:
        flags: the flags that were given, by name.
        config: the TOML file, or None.

    Raises:
        ConfigError: the file or a secret cannot be read, or the file has an unknown setting.
    """
    given = {name: (value, str(config)) for name, value in _read(config).items()}
    for name in FIELDS:
        found = read_variable(variable(name))
        if found is not None:
            given[name] = found
    given.update({name: (value, FLAG) for name, value in flags.items() if value is not None})
    return given


def load(flags: dict[str, Any], config: Path | None, *, options: bool = True) -> Settings:
    """Return the checked settings. The directories are not checked: see `resolve`.

    Args:
        flags: the flags that were given, by field name without underscore.
        config: the TOML file, or None.
        options: also check the options in the catalog's URL, which loads the database's driver.

    Raises:
        ConfigError: a setting is wrong: which one, and what it should be.
    """
    given = collect(flags, config)
    sources = {name: source for name, (_, source) in given.items()}
    try:
        settings = Settings(**{variable(name): value for name, (value, _) in given.items()})
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem, sources) for problem in error.errors())) from None
    if options and settings.catalog:
        from sharedvol_sidecar.catalog.url import check_url  # loads SQLAlchemy, which a health check does not need

        try:
            check_url(settings.catalog)
        except ConfigError as error:
            raise ConfigError(f"{named('catalog', sources['catalog'])}: {error}") from None
    return settings


def named(name: str, source: str) -> str:
    """Return a setting's name for a message: ``setting 'catalog' (SHAREDVOL_CATALOG)``, without its value."""
    where = f"--{name.replace('_', '-')}" if source == FLAG else source
    return f"setting {name!r} ({where})" if where else f"setting {name!r}"


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        given = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read settings file {str(config)!r}: {describe(error)}; name another with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"settings file {str(config)!r} is not valid TOML: {toml_problem(error)}; fix that line"
        ) from None
    for name in given:
        if name not in FIELDS:  # exactly: `QUIET` and `quiet` would be the same setting twice
            raise ConfigError(f"settings file {str(config)!r}: there is no setting {name!r}: there are {_NAMES}")
    return given


def _in_words(problem: Any, sources: dict[str, str]) -> str:
    name = (str(problem["loc"][0]) if problem["loc"] else "?").removeprefix(PREFIX).lower()
    if problem["type"] == "missing":
        flag = name.replace("_", "-")
        return f"{name!r} is not set: give --{flag}, {variable(name)}, or {name!r} in the settings file"
    source = sources.get(name, "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    secret = name == "catalog" or source.endswith(SECRET) or "@" in str(problem["input"])
    given = "" if secret else f" (it is {problem['input']!r})"
    return f"{named(name, source)}: {message[:1].lower()}{message[1:]}{given}"
