"""The settings. Each field of `Settings` is a flag, an environment variable and a key of the TOML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sharedvol.arguments import parse_size
from sharedvol_sidecar.config.listen import DEFAULT_LISTEN, parse_listen
from sharedvol_sidecar.destination.template import DEFAULT, Template
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.retention.rules import parse_rules

PREFIX = "SHAREDVOL_"

_NUMERIC = ("quiet", "interval", "workers", "follow_interval", "seal_after", "grace")
_NUMBERS = re.compile(r"(?P<uid>\d{1,9})?(:(?P<gid>\d{1,9}))?")

Names = tuple[str, ...]


def variable(field: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + field.rstrip("_").upper()


def setting(default: Any, metavar: str, description: str, *, run: bool = False, **limits: Any) -> Any:
    """Declare a field with the help of its flag; ``run`` if ``once`` does not use it."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar, "run": run}, **limits)


class Settings(BaseModel):
    """All settings, checked."""

    model_config = ConfigDict(alias_generator=variable, extra="forbid", allow_inf_nan=False, frozen=True)

    from_: Path = setting(..., "SPOOL", "The directory that the replicas write below.")
    to: Path = setting(..., "COLLECTED", "The directory for the files: next to the spool, best on its file system.")
    template: str = setting(DEFAULT, "TEMPLATE", "Names in the destination.")
    quiet: float = setting(
        2.0,
        "SECONDS",
        "A closed file is finished when it has not changed for this time. A file that was renamed or linked into place "
        "is finished at once.",
        ge=0,
        le=86_400,
    )
    interval: float = setting(5.0, "SECONDS", "Scan this often if no event reports a file.", run=True, gt=0, le=86_400)
    kinds: Names = setting(("results", "logs"), "NAMES", "The directories that are collected, by their names.")
    pattern: str | None = setting(
        None,
        "REGEX",
        "For flat directories: how to read the container from a file's name, with a group (?P<container>...). By "
        "default the names that sharedvol and R build.",
    )
    workers: int = setting(2, "N", "Processes that work on a backlog, 1 or 2.", ge=1, le=2)
    follow: Names = setting(
        ("logs",), "KINDS", "The kinds whose open files are followed into the destination, or none."
    )
    follow_interval: float = setting(
        1.0, "SECONDS", "Copy new data of followed logs this often.", run=True, ge=0.05, le=3600
    )
    seal_after: float = setting(
        60.0,
        "SECONDS",
        "Where leases do not work, a log is finished when it has not changed for this time.",
        ge=0,
        le=86_400 * 30,
    )
    compress: Literal["none", "gzip", "zstd"] = setting("none", "FORMAT", "Compress finished logs: gzip or zstd.")
    catalog: str = setting(
        "",
        "URL",
        "mysql://user@host/database, sqlite:///file, or none. By default COLLECTED/.sharedvol/catalog.db.",
    )
    digests: bool = setting(True, "BOOL", "Compute the SHA-256 of every file.")
    owner: str | None = setting(
        None, "UID:GID", "Owner of collected files, by number. By default the owner of the source."
    )
    file_mode: str | None = setting(
        None, "OCTAL", "Permission bits of collected files, such as 0640. By default those of the source."
    )
    directory_mode: str | None = setting(None, "OCTAL", "Permission bits of the directories that are made for them.")
    min_free: str = setting("16M", "SIZE", "Free space that copies and followed logs leave in the destination.")
    rate: str = setting("0", "SIZE", "Move at most this many bytes per second; 0 for no limit.")
    orphans: Literal["remove", "keep"] = setting(
        "remove",
        "WHAT",
        "What to do with empty directories of dead containers that joined the volume: remove, keep.",
    )
    keep: Names = setting(
        (), "RULES", "What to keep of collected files, separated by spaces: results=90d logs=14d,20G.", run=True
    )
    prune: Literal["off", "dry-run", "apply"] = setting(
        "dry-run",
        "MODE",
        "What to do, once an hour, with files that --keep does not keep: off, dry-run (log them) or apply.",
        run=True,
    )
    listen: str = setting(DEFAULT_LISTEN, "ADDRESS", "Where to serve HTTP: host:port, or off.", run=True)
    allowed_hosts: Names = setting(
        (), "NAMES", "Host names, other than localhost, that requests to a loopback address may have.", run=True
    )
    allow_network: bool = setting(False, "BOOL", "Accept network file systems, where locks may not hold, silently.")
    strict: bool = setting(False, "BOOL", "Refuse network file systems instead of warning.")
    grace: float = setting(
        8.0,
        "SECONDS",
        "End within this time after SIGTERM. A file that takes longer is left for the next start.",
        run=True,
        gt=0,
        le=86_400,
    )

    @field_validator(*_NUMERIC, mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        if isinstance(value, bool):  # Python would accept it as 0 or 1
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
        from sharedvol_sidecar.catalog.url import check_url  # loads SQLAlchemy, which a health check does not need

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
        try:
            parse_rules(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def uid(self) -> int | None:
        """The user that owns collected files; None to keep the source's."""
        return self._number("uid")

    @property
    def gid(self) -> int | None:
        """The group that owns collected files; None to keep the source's."""
        return self._number("gid")

    def _number(self, name: str) -> int | None:
        found = _NUMBERS.fullmatch(self.owner or "")
        return int(found[name]) if found and found[name] else None


FIELDS = tuple(name.rstrip("_") for name in Settings.model_fields)
"""The names of the settings."""
