"""The settings: by flag, else by environment (``SHAREDVOL_…``), else by a TOML file, else the default."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from sharedvol.errors import describe
from sharedvol_sidecar.collector import Job
from sharedvol_sidecar.destination import overlap
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.template import DEFAULT, Template

PREFIX = "SHAREDVOL_"


def _variable(field: str) -> str:
    return PREFIX + field.rstrip("_").upper()


class Settings(BaseSettings):
    """What can be set. Each is also an environment variable and a key of the TOML file, by its name."""

    model_config = SettingsConfigDict(
        alias_generator=_variable, extra="forbid", env_ignore_empty=True, allow_inf_nan=False
    )

    from_: Path = Field(description="the spool: the directory that the replicas write below")
    to: Path = Field(description="the directory that files are collected into")
    template: str = Field(DEFAULT, description="names in the destination")
    quiet: float = Field(2.0, ge=0, le=86_400, description="seconds without a change after which a file is finished")
    interval: float = Field(5.0, gt=0, le=86_400, description="seconds between scans when no event tells")
    kinds: Annotated[tuple[str, ...], NoDecode] = Field(("results", "logs"), description="the sources' directories")
    pattern: str | None = Field(None, description="how a flat directory's file names tell the container")
    workers: int = Field(2, ge=1, le=2, description="processes that work on a backlog, at most")

    @field_validator("kinds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("kinds")
    @classmethod
    def _plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any(not kind or "/" in kind or kind.startswith(".") for kind in value):
            raise ValueError("give names of directories, such as results,logs")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if "container" not in groups:
            raise ValueError("it needs a group named container: (?P<container>...)")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file."""
        return init_settings, env_settings, _TomlFile(settings_cls)


class _TomlFile(PydanticBaseSettingsSource):
    """The keys of the TOML file that `load` names."""

    values: dict[str, Any] = {}  # noqa: RUF012 - set for the duration of one `load`

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.values


def load(flags: dict[str, Any], config: Path | None) -> Settings:
    """The settings, checked, but not the directories.

    Args:
        flags: the flags that were given, by field name without underscore.
        config: the TOML file, or None.

    Raises:
        ConfigError: in one line: which setting, what is wrong with it, and what it should be.
    """
    _TomlFile.values = {_variable(name): value for name, value in _read(config).items()}
    try:
        given = {_variable(name): value for name, value in flags.items() if value is not None}
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem) for problem in error.errors())) from None
    finally:
        _TomlFile.values = {}


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read settings file {str(config)!r}: {describe(error)}; name another with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {str(config)!r} is not valid TOML: {error}; mend that line") from None


def _in_words(problem: Any) -> str:
    variable = str(problem["loc"][0]) if problem["loc"] else "?"
    name = variable.removeprefix(PREFIX).lower()
    if problem["type"] == "missing":
        return f"{name!r} is not set: give --{name}, {variable}, or {name!r} in the settings file"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_variable(field).removeprefix(PREFIX).lower() for field in Settings.model_fields)
        return f"there is no setting {name!r}: there are {known}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"setting {name!r}: {message[:1].lower()}{message[1:]} (it is {problem['input']!r})"


def job(settings: Settings) -> Job:
    """The settings as a job, with the directories checked.

    Raises:
        ConfigError: a directory is missing, not a directory, not writable, or one is in the other.
    """
    Template(settings.template)
    for flag, path in (("--from", settings.from_), ("--to", settings.to)):
        if "\0" in str(path):  # TOML can hold one, and every system call would raise a ValueError
            raise ConfigError(f"{flag} {str(path)!r} is not a path: take the NUL character out")
        try:
            is_directory = path.stat() and path.is_dir()
        except OSError as error:
            raise ConfigError(f"{flag} {str(path)!r}: {describe(error)}; create it, or mount its volume") from None
        if not is_directory:
            raise ConfigError(f"{flag} {str(path)!r} is not a directory: name one")
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"{flag} {str(path)!r} cannot be written by user {os.geteuid()}: give it permission, or mount the "
                "volume read-write"
            )
    if overlap(settings.from_, settings.to):
        raise ConfigError(
            f"--to {str(settings.to)!r} and --from {str(settings.from_)!r} lie one in the other: collected "
            "files would be found again; use two directories side by side"
        )
    return Job(
        spool=str(settings.from_.resolve()),
        collected=str(settings.to.resolve()),
        template=settings.template,
        quiet=settings.quiet,
        kinds=settings.kinds,
        pattern=settings.pattern,
        workers=settings.workers,
    )
