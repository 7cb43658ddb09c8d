"""What a fault is called in readiness, and when it is over."""

from __future__ import annotations

import errno
import os

from sharedvol_sidecar.board import Board
from sharedvol_sidecar.collector import Collector, Job
from sharedvol_sidecar.errors import ConfigError, DestinationError, SpoolError
from sharedvol_sidecar.report import Tally

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_OF_A_PASS = ("destination_full", "destination_unavailable", "spool_unavailable", "permission", "free_space_floor")


def reason_of(error: BaseException, job: Job) -> str:
    """One of the reasons of `picture.REASONS`.

    Args:
        error: what ended a pass.
        job: tells the directories.
    """
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno is not None):
        cause = cause.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(error, ConfigError) or number in _DENIED:
        return "permission"
    if isinstance(error, SpoolError):
        return "spool_unavailable"
    if isinstance(error, DestinationError):
        return "destination_full" if number in _FULL else "destination_unavailable"
    return "spool_unavailable" if os.path.isdir(job.collected) else "destination_unavailable"


def clear_up(board: Board, collector: Collector, tally: Tally) -> None:
    """A pass ended well: what it did not meet is over, what it met on the way is told."""
    now = {}
    if tally.denied:
        now["permission"] = f"{tally.denied} directories of the destination may not be written"
    if tally.no_room or collector.short_of_space:
        now["free_space_floor"] = "copies and followed logs wait in the spool until there is room"
    for reason in _OF_A_PASS:
        if reason in now:
            board.fault(reason, now[reason])
        else:
            board.clear(reason)
    if collector.register.problem:
        board.fault("catalog_unavailable", collector.register.problem)
    else:
        board.clear("catalog_unavailable")
