"""Remove and create files below a directory that other users may write to, without following symbolic links."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
import stat
from typing import TYPE_CHECKING

from sharedvol.identity import worker_token
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def remove(name: str, directory: int) -> bool:
    """Remove whatever has the name, with its contents. Return False if there was nothing.

    Raises:
        OSError: it cannot be removed.
    """
    while True:
        try:
            os.unlink(name, dir_fd=directory)
            return True
        except FileNotFoundError:
            return False
        except OSError:
            with contextlib.suppress(FileNotFoundError):  # removed since: the next turn finds out
                if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise
        try:
            shutil.rmtree(name, dir_fd=directory)
            return True
        except FileNotFoundError:
            continue  # another process removes there as well
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            # A writer put a file into a directory that was just emptied: try again.


class Temporary:
    """A file without its final name, as in `sharedvol.publish`: hidden, and locked while its writer lives.

    It is not synced, because an entry's checksum detects the effect of a power cut.

    Args:
        directory: a descriptor of the directory, which `drop` closes.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, directory: int) -> None:
        self._directory, self._pid = directory, os.getpid()
        self._name = ""
        try:
            self.fd = self._create()
        except BaseException:
            os.close(directory)
            raise

    def _create(self) -> int:
        while True:
            self._name = f".{worker_token()}-{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self._name, flags, 0o666, dir_fd=self._directory)
            with contextlib.suppress(OSError):  # without the lock it never looks like a dead writer's file
                fcntl.flock(fd, fcntl.LOCK_EX)
            # A cleaner may have removed it between its creation and its lock.
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)

    @property
    def ours(self) -> bool:
        """Whether this process created it. In a forked child the file belongs to the parent."""
        return self._pid == os.getpid()

    @property
    def named(self) -> bool:
        """Whether it has a name, so that it can be renamed."""
        return bool(self._name)

    def unname(self) -> None:
        """Remove its name, so that the kernel removes the file when it is closed."""
        os.unlink(self._name, dir_fd=self._directory)
        self._name = ""

    def replaced(self, name: str) -> int:
        """Return the size in bytes of the file that `rename` will replace; 0 if there is none."""
        try:
            info = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return 0
        return info.st_size if stat.S_ISREG(info.st_mode) else 0

    def rename(self, name: str) -> None:
        """Rename it, and replace a file with the new name.

        Raises:
            OSError: it cannot be renamed.
        """
        os.rename(self._name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._name = ""

    def drop(self) -> None:
        """Close it. Unless it was renamed, remove it."""
        if self._name and self.ours:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self.fd)
        os.close(self._directory)


class Window(io.RawIOBase):
    """A part of a file as a file of its own, to read ``length`` bytes from ``start``, or to write from there.

    The writes of a forked child are discarded, because its copy of the buffer would damage its parent's file.

    Args:
        fd: the file, which `close` closes.
        start: the position of the part, in bytes.
        length: its length in bytes, to read; None to write.
    """

    def __init__(self, fd: int, start: int, length: int | None) -> None:
        self._fd, self._start, self._length = fd, start, length
        self._position, self._pid = 0, os.getpid()

    def readable(self) -> bool:
        """Return whether it can be read."""
        return self._length is not None

    def writable(self) -> bool:
        """Return whether it can be written."""
        return self._length is None

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into ``buffer``. Return how many bytes."""
        if self._length is None:
            raise io.UnsupportedOperation("opened to write")
        view = memoryview(buffer).cast("B")
        left = max(0, self._length - self._position)
        count = os.preadv(self._fd, [view[:left]], self._start + self._position)
        self._position += count
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        """Write ``data``. Return how many bytes."""
        if self._length is not None:
            raise io.UnsupportedOperation("opened to read")
        forked = self._pid != os.getpid()
        count = memoryview(data).nbytes if forked else os.pwrite(self._fd, data, self._start + self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position. Return it."""
        end = self._length if self._length is not None else os.fstat(self._fd).st_size - self._start
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}[whence]
        if position < 0:
            raise ValueError(f"cannot seek to {position}: it is before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the part. Return its size in bytes."""
        if self._length is not None:
            raise io.UnsupportedOperation("opened to read")
        size = self._position if size is None else size
        if self._pid == os.getpid():
            os.ftruncate(self._fd, self._start + size)
        return size

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            os.close(self._fd)
