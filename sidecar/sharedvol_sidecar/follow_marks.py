"""Marks on live copies: which logs a living sidecar sees in the places that it scans.

A sidecar whose settings show it fewer files than another one's cannot tell a log that has ended from a log that it does
not see. So each sidecar that follows a log holds a read lock on its live copy as long as it sees the log, and another
asks for that lock before it ends the log. The kernel frees the lock when its holder dies.

The lock is an open file description lock (F_OFD_SETLK): closing another descriptor of the copy does not drop it. Asking
(F_OFD_GETLK) takes nothing. See fcntl_locking(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from sharedvol_sidecar.follow_records import Log


def set_mark(log: Log) -> None:
    """Show others that this process sees the log. Does nothing on a file system without locks."""
    if log.live >= 0 and not log.marked:
        with contextlib.suppress(OSError):
            fcntl.fcntl(log.live, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
        log.marked = True


def clear_mark(log: Log) -> None:
    """Take the mark back: this process has not seen the log for a while."""
    if log.marked:
        with contextlib.suppress(OSError):
            fcntl.fcntl(log.live, fcntl.F_OFD_SETLK, _lock(fcntl.F_UNLCK))
        log.marked = False


def is_marked_by_others(log: Log) -> bool:
    """Whether another process's mark is on the live copy, which is open."""
    try:
        answer = fcntl.fcntl(log.live, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
    except OSError:
        return False
    return int(struct.unpack("@hhqqi0q", answer)[0]) != fcntl.F_UNLCK


def _lock(kind: int) -> bytes:
    """A struct flock: type, whence, start, length 0 for the whole file, and process 0 as such locks need."""
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)
