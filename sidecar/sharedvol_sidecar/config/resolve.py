"""The settings as a job, with the directories checked."""

from __future__ import annotations

import os
from pathlib import Path

from sharedvol.arguments import parse_size
from sharedvol.errors import describe
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.config.settings import Settings
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.mounts import overlap


def resolve(settings: Settings) -> CollectorConfig:
    """The settings as a job.

    Raises:
        ConfigError: a directory is missing, not a directory, not writable, or one is in the other.
    """
    _check("--from", settings.from_)
    _check("--to", settings.to)
    if overlap(settings.from_, settings.to):
        raise ConfigError(
            f"--to {str(settings.to)!r} and --from {str(settings.from_)!r} lie one in the other: collected "
            "files would be found again; use two directories side by side"
        )
    unknown = [kind for kind in settings.follow if kind not in settings.kinds]
    if unknown and settings.follow != ("logs",):  # which is the default, whatever the kinds are
        raise ConfigError(
            f"--follow {unknown[0]!r} is none of the kinds {', '.join(settings.kinds)}: name some of them"
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
