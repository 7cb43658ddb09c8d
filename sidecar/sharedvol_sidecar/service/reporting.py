"""What a fault is called in readiness, and when it is over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sharedvol import SharedVolError
from sharedvol.errors import describe
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS, ConfigError, DestinationError, SpoolError, errno_of
from sharedvol_sidecar.fs.directory import Directory, open_root
from sharedvol_sidecar.fs.private import PRIVATE
from sharedvol_sidecar.monitor.state import ServiceState

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_OF_A_PASS = (
    "destination_full",
    "destination_unavailable",
    "spool_full",
    "spool_unavailable",
    "permission",
    "descriptors",
    "free_space_floor",
)


def reason_of(error: BaseException, job: CollectorConfig) -> str:
    """One of the reasons of `picture.REASONS`.

    Args:
        error: what ended a pass.
        job: tells the directories.
    """
    number = errno_of(error)
    if number in OUT_OF_DESCRIPTORS:
        return "descriptors"
    if isinstance(error, ConfigError) or number in _DENIED:
        return "permission"
    if isinstance(error, SpoolError):
        if number not in _FULL:
            return "spool_unavailable"
        return "destination_full" if _is_one_file_system(job) else "spool_full"
    if isinstance(error, DestinationError):
        return "destination_full" if number in _FULL else "destination_unavailable"
    return _by_looking(number, job)


def _by_looking(number: int | None, job: CollectorConfig) -> str:
    """An error that does not tell which of the two it is about: ask both whether a file can be made there."""
    destination = _problem(job.collected)
    if destination in _FULL:
        return "destination_full"
    if destination is None and number in _FULL and (_is_one_file_system(job) or not _free(job.collected)):
        return "destination_full"
    spool = _problem(job.spool)
    if destination is None and (number in _FULL or spool in _FULL):
        return "spool_full"
    if destination in _DENIED or (destination is None and spool in _DENIED):
        return "permission"
    return "spool_unavailable" if destination is None else "destination_unavailable"


def _problem(root: str) -> int | None:
    """What keeps a file from being made in our own directory there, as an errno; None if nothing does."""
    probe = f"probe-{os.urandom(8).hex()}"
    try:
        with open_root(Path(root)) as top, _private(top) as place:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(probe, flags, 0o600, dir_fd=place.fd))
            os.unlink(probe, dir_fd=place.fd)
    except OSError as error:
        return error.errno
    return None


def _private(top: Directory) -> Directory:
    """Open our own directory, or the one that has it where there is none. No link is followed."""
    try:
        return top.open(PRIVATE)
    except FileNotFoundError:
        return top.duplicate()


def _is_one_file_system(job: CollectorConfig) -> bool:
    try:
        return os.stat(job.spool).st_dev == os.stat(job.collected).st_dev
    except OSError:
        return False


def _free(path: str) -> int:
    try:
        return os.statvfs(path).f_bavail
    except OSError:
        return 1  # nobody knows


def clear_up(board: ServiceState, collector: Collector, counts: PassCounts) -> None:
    """A pass ended well: what it did not meet is over, what it met on the way is told."""
    now = {}
    if counts.denied:
        now["permission"] = f"{counts.denied} directories of the destination may not be written"
    if collector.short_of_descriptors:
        now["descriptors"] = "too many files are open: what lies deepest waits in the spool"
    if collector.short_of_spool:
        reason = "destination_full" if collector.parts.linked else "spool_full"
        now[reason] = "files wait in the spool until there is room for their claims"
    if collector.short_of_space:
        now["free_space_floor"] = "copies and followed logs wait in the spool until there is room"
    elif counts.no_room:
        now["destination_full"] = f"{counts.no_room} files are larger than what is free; they wait in the spool"
    for reason in _OF_A_PASS:
        if reason in now:
            board.fault(reason, now[reason])
        else:
            board.clear(reason)
    if collector.parts.catalog.problem:
        board.fault("catalog_unavailable", collector.parts.catalog.problem)
    else:
        board.clear("catalog_unavailable")


def in_words(error: Exception) -> str:
    """Return what happened and to which path; errors of ours say it themselves."""
    if isinstance(error, SharedVolError) or not isinstance(error, OSError):
        return str(error)
    where = f" with {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    return f"cannot continue{where}: {describe(error)}"
