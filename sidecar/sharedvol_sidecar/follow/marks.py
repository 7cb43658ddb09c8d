"""Marks on live copies: which logs a living sidecar sees in the places that it scans, and which it has open.

A sidecar whose settings show it fewer files than another one's cannot tell a log that has ended from a log that it does
not see. A sidecar that started after a log was deleted cannot read the log, and another one may still do so. So each
sidecar holds read locks on two bytes of a live copy: on the first while it sees the log, on the second while it has
the log open. Another sidecar queries these locks before it ends the log. The kernel frees them when their holder dies.

The locks are open file description locks (F_OFD_SETLK): closing another descriptor of the copy does not drop them.
A query (F_OFD_GETLK) takes nothing. See fcntl_locking(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from sharedvol_sidecar.follow.store import FollowedLog

_SEEN = (0, 1)  # start and length
_ALL = (0, 0)  # to the end of any file


def set_marks(log: FollowedLog) -> None:
    """Show others whether this process sees the log and has it open. Does nothing on a file system without locks."""
    wanted = (log.in_sight, log.fd >= 0)
    if log.live < 0 or log.marks == wanted:
        return
    with contextlib.suppress(OSError):
        for byte, on in enumerate(wanted):
            fcntl.fcntl(log.live, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK if on else fcntl.F_UNLCK, byte, 1))
    log.marks = wanted


def is_marked_by_others(log: FollowedLog) -> bool:
    """Return whether another process knows better than this one that the log has not ended. Its copy is open.

    That is a process that sees the log; for a log that this process cannot read also one that has it open.
    """
    return _is_locked(log.live, *(_SEEN if log.fd >= 0 else _ALL))


def is_watched(fd: int) -> bool:
    """Return whether any other description of a live copy holds a mark: a running sidecar sees or reads its log."""
    return _is_locked(fd, *_ALL)


def _is_locked(fd: int, start: int, length: int) -> bool:
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, start, length))
    except OSError:
        return False
    return int(struct.unpack("@hhqqi0q", answer)[0]) != fcntl.F_UNLCK


def _lock(kind: int, start: int, length: int) -> bytes:
    """A struct flock: type, whence, start, length, and process 0 as such locks need."""
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, start, length, 0)
