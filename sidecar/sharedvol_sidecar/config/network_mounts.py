"""Find directories of a sidecar on network file systems, where locks may not work between hosts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sharedvol.mounts import network_mount
from sharedvol.network import describe_mount
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.config.settings import Settings
from sharedvol_sidecar.errors import ConfigError

NETWORK = "network_file_system"
"""The name of the event, and of the warning on the status page."""


@dataclass(frozen=True, slots=True)
class NetworkWarning:
    """A directory on a network file system, and what that means in words."""

    path: str
    detail: str


def network_warnings(job: CollectorConfig, settings: Settings) -> list[NetworkWarning]:
    """Return a warning for each directory on a network file system; none if the settings accept those.

    Raises:
        ConfigError: there is one, and the settings are strict.
    """
    directories = (job.spool, job.collected, *catalog_directory(job.catalog))
    return [] if settings.allow_network else warnings_for(directories, strict=settings.strict)


def warnings_for(directories: Iterable[str], *, strict: bool) -> list[NetworkWarning]:
    """Return a warning for each mount of a network file system that the directories are on.

    Raises:
        ConfigError: there is one, and ``strict`` is given.
    """
    found = list(_found(directories))
    if found and strict:
        raise ConfigError("; ".join(f"{one.path!r} {one.detail}" for one in found))
    return found


def _found(directories: Iterable[str]) -> Iterator[NetworkWarning]:
    seen = set()
    for path in directories:
        with contextlib.suppress(OSError):  # the code that needs the directory reports the error
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                mounted = network_mount(fd)
            finally:
                os.close(fd)
            if mounted is not None and mounted[0] not in seen:
                seen.add(mounted[0])
                yield NetworkWarning(path, describe_mount(mounted[1], "--allow-network true"))


def catalog_directory(url: str | None) -> Iterator[str]:
    """Yield the directory of a catalog in a file that is not in the destination."""
    head, slashes, file = (url or "").partition(":///")
    if slashes and head.startswith("sqlite"):
        yield os.path.dirname(os.path.abspath(file.partition("?")[0]))
