"""Turn settings into the configuration of a collector, and check the directories."""

from __future__ import annotations

import os
from pathlib import Path

from sharedvol.arguments import parse_size
from sharedvol.errors import describe, remedy
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.config.settings import Settings
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.mounts import overlap


def resolve(settings: Settings) -> CollectorConfig:
    """Return the configuration of a collector.

    Raises:
        ConfigError: a directory is missing, not a directory or not writable, or one contains the other.
    """
    _check("--from", settings.from_)
    _check("--to", settings.to)
    if overlap(settings.from_, settings.to):
        raise ConfigError(
            f"--to {str(settings.to)!r} and --from {str(settings.from_)!r} overlap: collected files would "
            "be found again; use two separate directories"
        )
    unknown = [kind for kind in settings.follow if kind not in settings.kinds]
    if unknown and settings.follow != ("logs",):  # the default is accepted with any kinds
        raise ConfigError(
            f"--follow {unknown[0]!r} is not one of the kinds {', '.join(settings.kinds)}: name one or more of them"
        )
    return CollectorConfig(
        spool=str(settings.from_.resolve()),
        collected=str(settings.to.resolve()),
        template=settings.template,
        quiet=settings.quiet,
        kinds=settings.kinds,
        pattern=settings.pattern,
        workers=settings.workers,
        follow=settings.follow,
        seal_after=settings.seal_after,
        compress="" if settings.compress == "none" else settings.compress,
        catalog=None if settings.catalog == "none" else settings.catalog,
        digests=settings.digests,
        uid=settings.uid,
        gid=settings.gid,
        file_mode=_octal(settings.file_mode),
        directory_mode=_octal(settings.directory_mode),
        min_free=parse_size(settings.min_free) or 0,
        rate=float(parse_size(settings.rate) or 0),
        orphans=settings.orphans == "remove",
    )


def _octal(text: str | None) -> int | None:
    return None if text is None else int(text, 8)


def _check(flag: str, path: Path) -> None:
    if "\0" in str(path):  # TOML allows it, but every system call would raise a ValueError
        raise ConfigError(f"{flag} {str(path)!r} is not a path: remove the NUL character")
    try:
        is_directory = path.stat() and path.is_dir()
    except OSError as error:
        raise ConfigError(f"{flag} {str(path)!r}: {describe(error)}; {remedy(error)}") from None
    if not is_directory:
        raise ConfigError(f"{flag} {str(path)!r} is not a directory: name one")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"{flag} {str(path)!r} cannot be written by user {os.geteuid()}: give it write access, or mount "
            "the volume read-write"
        )
