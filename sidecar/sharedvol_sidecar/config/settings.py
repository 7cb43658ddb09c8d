"""The settings: by flag, else by environment (``SHAREDVOL_…``), else by a TOML file, else the default.

One list, `Settings`: its fields are the flags, the variables and the keys.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sharedvol.arguments import parse_size
from sharedvol.errors import describe
from sharedvol_sidecar.config.listen import DEFAULT_LISTEN, parse_listen
from sharedvol_sidecar.config.secret import SECRET, read_variable
from sharedvol_sidecar.destination.template import DEFAULT, Template
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.humanize import toml_problem

PREFIX = "SHAREDVOL_"
FLAG = "flag"
"""Where a value comes from that was given on the command line."""

_NUMERIC = ("quiet", "interval", "workers", "follow_interval", "seal_after", "grace")
_NUMBERS = re.compile(r"(?P<uid>\d{1,9})?(:(?P<gid>\d{1,9}))?")

Names = tuple[str, ...]


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.rstrip("_").upper()


def setting(default: Any, metavar: str, description: str, *, run: bool = False, **limits: Any) -> Any:
    """A field, with what its flag's help says; ``run`` for one that is of no use to ``once``."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar, "run": run}, **limits)


class Settings(BaseModel):
    """What can be set."""

    model_config = ConfigDict(alias_generator=variable, extra="forbid", allow_inf_nan=False, frozen=True)

    from_: Path = setting(..., "SPOOL", "The directory that the replicas write below.")
    to: Path = setting(..., "COLLECTED", "The directory for the files: beside the spool, best on its file system.")
    template: str = setting(DEFAULT, "TEMPLATE", "Names in the destination.")
    quiet: float = setting(
        2.0,
        "SECONDS",
        "A closed file is finished when it has not changed for so long; one that was renamed or linked into place "
        "is at once.",
        ge=0,
        le=86_400,
    )
    interval: float = setting(5.0, "SECONDS", "Scan so often when no event tells.", run=True, gt=0, le=86_400)
    kinds: Names = setting(("results", "logs"), "NAMES", "The sources' directories.")
    pattern: str | None = setting(
        None,
        "REGEX",
        "For flat directories: how a file's name tells its container, with a group (?P<container>...). By default "
        "the names that sharedvol and R build.",
    )
    workers: int = setting(2, "N", "Processes that work on a backlog, 1 or 2.", ge=1, le=2)
    follow: Names = setting(
        ("logs",), "KINDS", "The kinds whose open files are followed into the destination; none for none."
    )
    follow_interval: float = setting(
        1.0, "SECONDS", "Copy what followed logs have grown by so often.", run=True, ge=0.05, le=3600
    )
    seal_after: float = setting(
        60.0,
        "SECONDS",
        "Where no lease can be had: a log is finished when it has not changed for so long.",
        ge=0,
        le=86_400 * 30,
    )
    compress: Literal["none", "gzip", "zstd"] = setting("none", "FORMAT", "Compress finished logs: gzip or zstd.")
    catalog: str = setting(
        "",
        "URL",
        "mysql://user@host/database, sqlite:///file, or none. By default COLLECTED/.sharedvol/catalog.db.",
    )
    digests: bool = setting(True, "BOOL", "Take the SHA-256 of every file.")
    owner: str | None = setting(
        None, "UID:GID", "Whose collected files are, by number; else as their writers made them."
    )
    file_mode: str | None = setting(
        None, "OCTAL", "Their permission bits, such as 0640; else as their writers made them."
    )
    directory_mode: str | None = setting(None, "OCTAL", "Those of the directories that are made for them.")
    min_free: str = setting("16M", "SIZE", "Free space in the destination that copies and followed logs leave.")
    rate: str = setting("0", "SIZE", "Move at most so many bytes a second; 0 is no limit.")
    orphans: Literal["remove", "keep"] = setting(
        "remove", "WHAT", "The drained directories of containers that joined the volume and are dead: remove or keep."
    )
    keep: Names = setting(
        (), "RULES", "What to keep of collected files: results=90d logs=14d,20G, with spaces between.", run=True
    )
    prune: Literal["off", "dry-run", "apply"] = setting(
        "dry-run",
        "MODE",
        "What is done about files beyond --keep, once an hour: off, dry-run (log them) or apply.",
        run=True,
    )
    listen: str = setting(DEFAULT_LISTEN, "ADDRESS", "Where HTTP is served: host:port, or off.", run=True)
    allowed_hosts: Names = setting(
        (), "NAMES", "Host names that requests to a loopback address may have, besides localhost.", run=True
    )
    allow_network: bool = setting(False, "BOOL", "Accept network file systems, where locks may not hold, silently.")
    strict: bool = setting(False, "BOOL", "Refuse network file systems instead of a warning.")
    grace: float = setting(
        8.0,
        "SECONDS",
        "After SIGTERM, end within so long: a file that takes longer is left for the next start.",
        run=True,
        gt=0,
        le=86_400,
    )

    @field_validator(*_NUMERIC, mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        if isinstance(value, bool):  # which Python takes for 0 and 1
            raise ValueError("give a number")
        return value

    @field_validator("kinds", "follow", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("keep", mode="before")
    @classmethod
    def _split_rules(cls, value: object) -> object:
        return value.split() if isinstance(value, str) else value

    @field_validator("follow", mode="after")
    @classmethod
    def _none(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if value == ("none",) else value

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
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if "container" not in groups:
            raise ValueError("it needs a group named container: (?P<container>...)")
        return value

    @field_validator("owner")
    @classmethod
    def _numbers(cls, value: str | None) -> str | None:
        if value is not None and (not value or not _NUMBERS.fullmatch(value)):
            raise ValueError("give numbers: 1000, 1000:1000 or :1000")
        return value

    @field_validator("file_mode", "directory_mode", mode="before")
    @classmethod
    def _octal(cls, value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
            raise ValueError('give three octal digits in quotes, such as "0640"')
        return value

    @field_validator("min_free", "rate", mode="before")
    @classmethod
    def _is_size(cls, value: object) -> object:
        text = str(value)
        if parse_size(text) is None:
            raise ValueError("give a size: 0, 500M, 20G")
        return text

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            parse_listen(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("catalog")
    @classmethod
    def _is_catalog(cls, value: str) -> str:
        from sharedvol_sidecar.catalog.session import check_url  # SQLAlchemy, which a health check can do without

        try:
            check_url(value, options=False)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("template")
    @classmethod
    def _is_template(cls, value: str) -> str:
        Template(value)
        return value

    @field_validator("keep")
    @classmethod
    def _are_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from sharedvol_sidecar.retention.pruner import parse_rules  # SQLAlchemy, which a health check can do without

        try:
            parse_rules(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def uid(self) -> int | None:
        """The collected files' user."""
        return self._number("uid")

    @property
    def gid(self) -> int | None:
        """The collected files' group."""
        return self._number("gid")

    def _number(self, name: str) -> int | None:
        found = _NUMBERS.fullmatch(self.owner or "")
        return int(found[name]) if found and found[name] else None


FIELDS = tuple(name.rstrip("_") for name in Settings.model_fields)
"""The settings' names."""

_NAMES = ", ".join(FIELDS)


def collect(flags: dict[str, Any], config: Path | None) -> dict[str, tuple[Any, str]]:
    """What was given, and where: by name, the value and ``flag``, the variable, or the file.

    Args:
        flags: the flags that were given, by name.
        config: the TOML file, or None.

    Raises:
        ConfigError: the file or a secret cannot be read; or there is no such setting in it.
    """
    given = {name: (value, str(config)) for name, value in _read(config).items()}
    for name in FIELDS:
        found = read_variable(variable(name))
        if found is not None:
            given[name] = found
    given.update({name: (value, FLAG) for name, value in flags.items() if value is not None})
    return given


def load(flags: dict[str, Any], config: Path | None, *, options: bool = True) -> Settings:
    """Return the settings, checked, but not the directories.

    Args:
        flags: the flags that were given, by field name without underscore.
        config: the TOML file, or None.
        options: check the options in the catalog's URL, too, which loads the database's driver.

    Raises:
        ConfigError: in one line: which setting, what is wrong with it, and what it should be.
    """
    given = collect(flags, config)
    sources = {name: source for name, (_, source) in given.items()}
    try:
        settings = Settings(**{variable(name): value for name, (value, _) in given.items()})
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem, sources) for problem in error.errors())) from None
    if options and settings.catalog:
        from sharedvol_sidecar.catalog.session import check_url

        try:
            check_url(settings.catalog)
        except ConfigError as error:
            raise ConfigError(f"{named('catalog', sources['catalog'])}: {error}") from None
    return settings


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
        if name not in FIELDS:  # exactly: `QUIET` beside `quiet` would be the same setting twice
            raise ConfigError(f"settings file {str(config)!r}: there is no setting {name!r}: there are {_NAMES}")
    return given


def named(name: str, source: str) -> str:
    """Return how a message names a setting: ``setting 'catalog' (SHAREDVOL_CATALOG)``, never with its value."""
    where = f"--{name.replace('_', '-')}" if source == FLAG else source
    return f"setting {name!r} ({where})" if where else f"setting {name!r}"


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
