"""Files below a directory that anybody may have written to: opened through no symbolic link, made whole."""

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
    """Remove whatever has the name, with what is in it. False where it was not there.

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
            with contextlib.suppress(FileNotFoundError):  # removed since: the next turn tells
                if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise
        try:
            shutil.rmtree(name, dir_fd=directory)
            return True
        except FileNotFoundError:
            continue  # another one removes there, too
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            # A writer put something into a directory that we had just emptied: again.


class Temporary:
    """A file without its final name, as in `sharedvol.publish`: hidden, and locked while its writer lives.

    It is not synced: an entry's checksum tells when a power cut took some of it.

    Args:
        directory: a descriptor of the directory, which is closed with this.

    Raises:
        OSError: it cannot be made.
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
            with contextlib.suppress(OSError):  # without flock it is never taken for a dead writer's
                fcntl.flock(fd, fcntl.LOCK_EX)
            # A cleaner may have taken it for stale between its creation and its lock.
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)

    @property
    def ours(self) -> bool:
        """Whether this process made it; else it is a forked child, and the file its parent's."""
        return self._pid == os.getpid()

    @property
    def named(self) -> bool:
        """Whether it has a name, and so can be given another."""
        return bool(self._name)

    def unname(self) -> None:
        """Leave it without any name: gone when it is closed, however this process ends."""
        os.unlink(self._name, dir_fd=self._directory)
        self._name = ""

    def replaced(self, name: str) -> int:
        """The size of the file that `rename` will replace, in bytes; 0 if there is none."""
        try:
            info = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return 0
        return info.st_size if stat.S_ISREG(info.st_mode) else 0

    def rename(self, name: str) -> None:
        """Give it its name, in the place of what has it.

        Raises:
            OSError: that cannot be.
        """
        os.rename(self._name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._name = ""

    def drop(self) -> None:
        """Close it; without a name of its own it is gone."""
        if self._name and self.ours:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self.fd)
        os.close(self._directory)


class Window(io.RawIOBase):
    """A part of a file as a file of its own: reads ``length`` bytes from ``start`` on, or writes there.

    What a forked child writes is dropped: its copy of the buffer would spoil its parent's file.

    Args:
        fd: the file; closed with this.
        start: where the part begins, in bytes.
        length: where it ends, to read; None to write.
    """

    def __init__(self, fd: int, start: int, length: int | None) -> None:
        self._fd, self._start, self._length = fd, start, length
        self._position, self._pid = 0, os.getpid()

    def readable(self) -> bool:
        return self._length is not None

    def writable(self) -> bool:
        return self._length is None

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self._length is None:
            raise io.UnsupportedOperation("opened to write")
        view = memoryview(buffer).cast("B")
        left = max(0, self._length - self._position)
        count = os.preadv(self._fd, [view[:left]], self._start + self._position)
        self._position += count
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        if self._length is not None:
            raise io.UnsupportedOperation("opened to read")
        forked = self._pid != os.getpid()
        count = memoryview(data).nbytes if forked else os.pwrite(self._fd, data, self._start + self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        end = self._length if self._length is not None else os.fstat(self._fd).st_size - self._start
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}[whence]
        if position < 0:
            raise ValueError(f"cannot seek to {position}: it is before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        if self._length is not None:
            raise io.UnsupportedOperation("opened to read")
        size = self._position if size is None else size
        if self._pid == os.getpid():
            os.ftruncate(self._fd, self._start + size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)
