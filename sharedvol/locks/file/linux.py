"""Both lock families of Linux on one descriptor: the operating system's part of the file lock.

Linux has two families of advisory locks that do not see each other on a local file system: flock(2)
(Python filelock, portalocker, flock(1)) and fcntl(2) (R filelock and flock, fasteners, lockf(3)). A
holder takes both, and so excludes every user of either. The fcntl lock is an open file description
lock (F_OFD_SETLK): owned by the descriptor, as flock's is, not by the process, so that threads exclude
each other and closing another descriptor of the file drops nothing.

The order is part of the protocol: first the fcntl lock, then flock, everywhere. Two that took them in
different orders could each hold one and wait for the other for ever. Waiting happens in the kernel,
where a waiter is woken the moment the lock is free, beside the waiters of R.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from sharedvol.errors import LockFileError, describe, remedy

if TYPE_CHECKING:
    import fcntl
else:
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None

AVAILABLE = hasattr(fcntl, "F_OFD_SETLKW")
"""Whether this kernel's Python knows open file description locks: Linux."""

REPLACED = "somebody deleted or replaced the lock file"

Handle = int
"""What `open_lock_file` gives: here, a file descriptor."""


def _flock_struct(kind: int) -> bytes:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid. Length 0 is the whole file; l_pid must be 0
    # for open file description locks, see fcntl(2).
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)


if AVAILABLE:
    _READ, _WRITE, _NONE = (_flock_struct(kind) for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK))
    _SHARED_NOW, _EXCLUSIVE_NOW = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB


def open_lock_file(path: str, mode: int, dir_fd: int | None = None) -> Handle:
    """Open the lock file, created with exactly ``mode`` where it is missing.

    Read-write, as the fcntl write lock needs; never through a symbolic link; never anything but a
    regular file.

    Args:
        path: the lock file.
        mode: its permission bits, if it is created.
        dir_fd: a descriptor of its directory. Only the last part of ``path`` is looked up then.

    Raises:
        LockFileError: it cannot be opened, with the reason.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
    while True:
        try:
            # Without O_CREAT first: in a sticky directory the kernel refuses O_CREAT on another
            # user's file (fs.protected_regular, proc_sys_fs(5)), whatever its mode.
            fd = os.open(_below(path, dir_fd), flags, dir_fd=dir_fd)
            break
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _cannot_open(path, error) from error
        try:
            _create(path, flags, mode, dir_fd)
        except FileExistsError:
            pass  # another process was first
        except LockFileError:
            raise
        except OSError as error:
            raise _cannot_open(path, error) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise LockFileError(errno.EINVAL, f"lock {path!r} is not a regular file: name another path", path)
    if stat.S_IMODE(info.st_mode) == 0o600 and mode & ~0o600 and not info.st_size and info.st_uid == os.geteuid():
        # R's filelock creates 0600, which shuts out every other user's replicas; an empty file of our
        # own in that mode is taken for such a one.
        try:
            _set_mode(fd, path, mode)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _below(path: str, dir_fd: int | None) -> str:
    return path if dir_fd is None else os.path.basename(path)


def _create(path: str, flags: int, mode: int, dir_fd: int | None) -> None:
    """Make the lock file with its mode, which is not subject to the umask.

    It gets its name when it has its mode: between a creation and a chmod, another user's replica that
    starts at the same moment would be refused. Where there are no files without a name (O_TMPFILE), it
    has one from the start.
    """
    parent, name = os.path.split(path)
    if dir_fd is None:
        directory = os.open(parent or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        directory = os.dup(dir_fd)
    try:
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        try:
            _set_mode(fd, path, mode)
            if not os.fstat(fd).st_nlink:
                # The way of open(2), under O_TMPFILE. Without a dst_dir_fd Python calls link(2), which
                # follows nothing.
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def _set_mode(fd: Handle, path: str, mode: int) -> None:
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        raise LockFileError(
            error.errno or errno.EIO, f"cannot set the mode of lock {path!r} to {mode:#o}: {describe(error)}", path
        ) from error


def close(fd: Handle) -> None:
    """Close without unlocking: a forked child's close leaves its parent's lock alone."""
    with contextlib.suppress(OSError):  # other code of this process closed it before
        os.close(fd)


def identify(fd: Handle, path: str) -> object:
    """What tells this lock file from others: device and inode."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def is_current(path: str, identity: object, dir_fd: int | None = None) -> bool:
    """Return whether ``path`` still names the file that was opened: it may have been deleted or replaced.

    Args:
        path: the lock file.
        identity: from `identify`.
        dir_fd: as for `open_lock_file`.
    """
    try:
        info = os.stat(_below(path, dir_fd), dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == identity


def mark(fd: Handle) -> int:
    """Make a descriptor known again: its open file description gets a file offset, lseek(2), by which nothing is read.

    A random one of at least 1 GiB, where no other code's descriptor stands, and below what every file system takes.
    """
    try:
        return os.lseek(fd, 2**30 + int.from_bytes(os.urandom(4)) % 2**30, os.SEEK_SET)
    except OSError:
        return -1  # then only fstat(2) tells


def is_of(fd: Handle, identity: object, marked: int) -> bool:
    """Whether it is still of the file that was opened: other code may have closed it, and its number be another's.

    The mark costs a third of fstat(2), which is asked where a program that inherited the descriptor has moved it.
    """
    try:
        if os.lseek(fd, 0, os.SEEK_CUR) == marked:
            return True
        info = os.fstat(fd)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == identity


def try_both(fd: Handle, path: str, shared: bool) -> bool:
    """Take both locks if they are free, or neither; never waits."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _READ if shared else _WRITE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise _cannot_lock(path, error) from error
    try:
        fcntl.flock(fd, _SHARED_NOW if shared else _EXCLUSIVE_NOW)
    except OSError as error:
        unlock_first(fd)
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise _cannot_lock(path, error) from error
    return True


def is_linked(fd: Handle, identity: object) -> bool:
    """Whether the descriptor is that of the file that was opened, and the file has a name."""
    try:
        info = os.fstat(fd)
    except OSError:
        return False
    return info.st_nlink > 0 and (info.st_dev, info.st_ino) == identity


def why_lost(fd: Handle | None, path: str, identity: object) -> str | None:
    """How a lock that this descriptor held was lost, in words; None if it was not."""
    return why_closed(fd, path, identity) or (None if is_current(path, identity) else REPLACED)


def why_closed(fd: Handle | None, path: str, identity: object) -> str | None:
    """Return in words that the descriptor is not the lock file's any more; None if it is."""
    try:
        if fd is not None and identify(fd, path) == identity:
            return None
    except OSError:
        pass
    return "its descriptor was closed by other code of this process"


def try_first(fd: Handle) -> bool:
    """Take the fcntl lock alone if it is free; never waits."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def wait_first(fd: Handle, path: str, shared: bool) -> None:
    """Wait in the kernel for the fcntl lock. Python signal handlers run, and may raise."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _READ if shared else _WRITE)
    except OSError as error:
        raise _cannot_lock(path, error) from error


def wait_second(fd: Handle, path: str, shared: bool) -> None:
    """Wait in the kernel for the flock lock. Python signal handlers run, and may raise."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        raise _cannot_lock(path, error) from error


def conflict(fd: Handle) -> tuple[bool, int] | None:
    """What an exclusive fcntl lock would wait for; takes nothing and disturbs nobody, see F_OFD_GETLK in fcntl(2).

    A descriptor that is open for reading will do. flock(2) is not seen, but every `FileLock` holds both.

    Returns:
        None: nothing. Else whether that lock is exclusive, and its process: -1 for an open file description
        lock, which has none; 0 for a process of another PID namespace.

    Raises:
        OSError: the file system has no locks.
    """
    kind, _, _, _, pid = struct.unpack("@hhqqi0q", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WRITE))
    return None if kind == fcntl.F_UNLCK else (kind == fcntl.F_WRLCK, pid)


def unlock_first(fd: Handle) -> None:
    """Drop the fcntl lock."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NONE)


def unlock(fd: Handle) -> None:
    """Drop both, the last taken first, so that the next waiter for the first finds the second free."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NONE)


def _cannot_open(path: str, error: OSError) -> LockFileError:
    hint = remedy(
        error,
        ENOENT="create its directory, or mount the volume",
        ENOTDIR="a part of the path is not a directory",
        EROFS="a lock is opened for writing: mount the volume read-write, or keep the lock on another",
        EACCES="give user {user} read and write access to the lock file and its directory",
        ELOOP="it is a symbolic link, which a lock never follows: name the file itself",
        EISDIR="it is a directory: name a file in it",
    )
    return LockFileError(error.errno or errno.EIO, f"cannot open lock {path!r}: {describe(error)}; {hint}", path)


def _cannot_lock(path: str, error: OSError) -> LockFileError:
    hint = remedy(
        error,
        default="the file system does not support locks: keep the lock file on a named volume",
        ENOLCK="the file system has no lock service, or no memory for locks",
        EBADF="its descriptor was closed by other code of this process",
    )
    return LockFileError(error.errno or errno.EIO, f"cannot lock {path!r}: {describe(error)}; {hint}", path)
