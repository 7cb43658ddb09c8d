"""Find out with a read lease whether any process has a file open for writing.

The kernel refuses a read lease while any process in any container of this host has the inode open for writing. Shared
writable mappings, inherited descriptors and other hard links count. While the lease is held, a process that opens the
file for writing waits until the lease is released (at most /proc/sys/fs/lease-break-time, 45 s), and the lease shows
that a process waits. See F_SETLEASE(2const).
"""

from __future__ import annotations

import errno
import fcntl
import signal
from enum import Enum


class Lease(Enum):
    """The result of `acquire`."""

    HELD = "held"
    REFUSED = "refused"  # the file is open for writing
    UNAVAILABLE = "unavailable"  # not the file's owner and without CAP_LEASE, or a file system without leases


_NOT_HERE = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})


def acquire(fd: int) -> Lease:
    """Acquire a read lease on a descriptor that is open for reading. Closing the descriptor releases it.

    Raises:
        OSError: the call failed for another reason than that a lease is refused or unavailable.
    """
    try:
        # The kernel reports a waiting writer by SIGIO, which kills a process that does not handle it. SIGURG is
        # ignored by default, and the lease is checked instead (`is_intact`).
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return Lease.REFUSED
        if error.errno in _NOT_HERE:
            return Lease.UNAVAILABLE
        raise
    return Lease.HELD


def is_intact(fd: int) -> bool:
    """Return whether an acquired lease is still held and no writer waits to open the file."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def query(fd: int) -> Lease:
    """Return what `acquire` returns, and release the lease at once."""
    answer = acquire(fd)
    if answer is Lease.HELD:
        release(fd)
    return answer


def release(fd: int) -> None:
    """Release a lease. A writer that waits continues."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
