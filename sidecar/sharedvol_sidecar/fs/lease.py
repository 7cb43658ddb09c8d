"""Whether anybody has a file open for writing: asked of the kernel by a read lease.

A read lease is refused while any process in any container of this kernel has the inode open for
writing, shared writable mappings, inherited descriptors and other hard links included. Once it is held,
a process that opens the file for writing waits until the lease is given back (at most
/proc/sys/fs/lease-break-time, 45 s), and the lease shows that one waits. See F_SETLEASE(2const).
"""

from __future__ import annotations

import errno
import fcntl
import signal
from enum import Enum


class Lease(Enum):
    """The answer to `acquire`."""

    HELD = "held"
    REFUSED = "refused"  # the file is open for writing
    UNAVAILABLE = "unavailable"  # not the file's owner and without CAP_LEASE, or a file system without leases


_NOT_HERE = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})


def acquire(fd: int) -> Lease:
    """Ask for a read lease on a descriptor that is open for reading; closing it gives the lease back.

    Raises:
        OSError: for any other reason than being refused or unavailable.
    """
    try:
        # The kernel tells a holder of a waiting writer by SIGIO, which kills a process that does not
        # expect it. SIGURG is ignored by default, and we ask instead (`is_intact`).
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
    """Whether a lease that was taken still stands and no writer waits to open the file."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def query(fd: int) -> Lease:
    """As `acquire`, and gives the lease back at once."""
    answer = acquire(fd)
    if answer is Lease.HELD:
        release(fd)
    return answer


def release(fd: int) -> None:
    """Release a lease that was taken: a writer that waits continues."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
