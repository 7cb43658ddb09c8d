"""Make a file appear whole, once, without overwriting.

The file is written under a temporary name in the destination's directory, synced, and linked to its final name.
link(2) fails if the name is taken, so no file is overwritten, and a reader sees either nothing or all of it. Then the
directory is synced, so that the name survives a power cut, and the temporary name is removed.

The writer holds flock(2) on the temporary file for as long as it lives; see `sharedvol.publishing.temporaries`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Literal, TextIO, overload

from sharedvol.errors import AlreadyPublishedError, InvalidNameError, PublishError, describe, remedy
from sharedvol.filesystem import open_file, open_top
from sharedvol.identity import worker_token
from sharedvol.publishing.mark import marked_time
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX, PathLike, is_temporary


class Publication:
    """The context manager that `publish` returns. It yields the file to write to."""

    def __init__(
        self,
        path: PathLike,
        mode: str,
        encoding: str | None,
        newline: str | None,
        replace: bool,
        permissions: int | None,
    ) -> None:
        self.path = Path(path)
        if self.path.name in ("", "..") or "\0" in os.fspath(path) or os.fspath(path).endswith("/"):
            raise InvalidNameError(f"{os.fspath(path)!r} names no file to publish")
        if is_temporary(self.path.name):
            raise InvalidNameError(f"{os.fspath(path)!r} is named like a temporary file, which a cleaner would remove")
        if mode not in ("w", "wt", "wb"):
            raise ValueError(f"mode {mode!r}: publish takes 'w' (text) or 'wb' (binary)")
        self._binary = mode == "wb"
        self._encoding, self._newline = encoding, newline
        self._replace, self._permissions = replace, permissions
        self._directory = self._fd = -1
        self._temporary = ""

    def __enter__(self) -> IO[str] | IO[bytes]:
        self._pid = os.getpid()
        try:
            self._directory = open_top(self.path.parent)
        except OSError as error:
            raise self._error("open the directory of", error) from error
        try:
            self._check_target()
            self._fd = self._create()
            # The caller gets a duplicate: if other code closes it, this descriptor still holds the lock and can be
            # synced.
            duplicate = os.dup(self._fd)
            if self._binary:
                self._file: IO[str] | IO[bytes] = open(duplicate, "wb")
            else:
                self._file = open(duplicate, "w", encoding=self._encoding or "utf-8", newline=self._newline)
        except BaseException:
            self._drop()
            raise
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            # A forked child leaves the block as well, but only the parent publishes or discards the file.
            self._abandon_in_child()
            return
        try:
            if kind is None:
                self._file.close()  # flushes: a full disk fails here, and then nothing is published
                self._publish()
        except (PublishError, AlreadyPublishedError):
            raise
        except OSError as failure:
            raise self._error("publish", failure) from failure
        finally:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
            self._drop()

    def _publish(self) -> None:
        if self._permissions is not None:
            os.fchmod(self._fd, self._permissions)
        info = os.fstat(self._fd)
        os.utime(self._fd, ns=(info.st_atime_ns, marked_time(info.st_mtime_ns, info.st_size)))
        os.fsync(self._fd)  # before any name: a link to unsynced data is an empty file after a power cut
        if self._replace:
            self._check_target()  # again: the target may have been made while the block ran
            os.rename(self._temporary, self.path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._temporary = ""
        else:
            self._link()
        try:
            os.fsync(self._directory)
        except OSError as error:
            # Readers may have the file by now, so it stays published.
            raise PublishError(
                error.errno or errno.EIO,
                f"{str(self.path)!r} is published, but may not survive a power cut: its directory cannot be "
                f"synced: {describe(error)}; check the disk",
                str(self.path),
            ) from error

    def _link(self) -> None:
        try:
            os.link(
                self._temporary,
                self.path.name,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
                follow_symlinks=False,
            )
        except FileExistsError:
            raise self._taken_error() from None
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise PublishError(
                    error.errno,
                    f"cannot publish {str(self.path)!r} without overwriting: the file system there has no "
                    f"hard links: {describe(error)}; publish to another volume, or pass replace=True",
                    str(self.path),
                ) from error
            raise

    def _create(self) -> int:
        """Open a new temporary file and lock it."""
        while True:
            name = f".{worker_token()}-{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
            # Never wider than the final mode: a descriptor that another user opens now would survive a later chmod.
            mode = 0o666 if self._permissions is None else self._permissions & 0o777
            try:
                fd = open_file(name, self._directory, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._error("write", error) from error
            self._temporary, self._fd = name, fd
            # On a file system without flock, `remove_stale_temporaries` cannot take the lock either and leaves the
            # file alone.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            # Between its creation and its lock a cleaner may have removed it as stale.
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)
            self._fd = -1  # otherwise a failure of the next attempt would close it twice

    def _check_target(self) -> None:
        """Refuse a name that is taken, or with ``replace`` one that is not of a file.

        Raises:
            AlreadyPublishedError, PublishError: what `publish` raises for that.
        """
        try:
            mode = os.stat(self.path.name, dir_fd=self._directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error("check", error) from error
        if not self._replace:
            raise self._taken_error()
        # rename(2) replaces a symbolic link, not its target. It would cut off the users of a device or FIFO.
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise PublishError(
                errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
                f"cannot replace {str(self.path)!r}: it is {_kind(mode)}, and only files are replaced; "
                "publish under another name, or remove it first",
                str(self.path),
            )

    def _taken_error(self) -> AlreadyPublishedError:
        return AlreadyPublishedError(
            errno.EEXIST,
            f"{str(self.path)!r} exists and was left as it is: choose another name (see unique_path), "
            "or pass replace=True",
            str(self.path),
        )

    def _error(self, what: str, error: OSError) -> PublishError:
        hint = remedy(
            error,
            default="nothing was published",
            ENOENT="create the directory, or mount its volume",
            EACCES="give user {user} write access to the directory",
        )
        return PublishError(
            error.errno or errno.EIO, f"cannot {what} {str(self.path)!r}: {describe(error)}; {hint}", str(self.path)
        )

    def _drop(self) -> None:
        """Remove the temporary name and close the descriptors."""
        if self._fd >= 0:
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._fd)
        if self._directory >= 0:
            os.close(self._directory)
        self._fd = self._directory = -1

    def __del__(self) -> None:
        # A caller may call `__enter__` and never leave the block.
        with contextlib.suppress(Exception):  # the block was not entered, or the interpreter is ending
            if self._pid == os.getpid():
                self._drop()

    def _abandon_in_child(self) -> None:
        # Closing the caller's file would flush what the parent had buffered when it forked, and the parent writes that
        # itself. So the duplicate leads to /dev/null first.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self._file.fileno(), inheritable=False)
            os.close(null)
            self._file.close()
        os.close(self._fd)
        os.close(self._directory)
        self._fd = self._directory = -1


@overload
def publish(
    path: PathLike,
    mode: Literal["w", "wt"] = ...,
    *,
    encoding: str | None = ...,
    newline: str | None = ...,
    replace: bool = ...,
    permissions: int | None = ...,
) -> contextlib.AbstractContextManager[TextIO]: ...


@overload
def publish(
    path: PathLike, mode: Literal["wb"], *, replace: bool = ..., permissions: int | None = ...
) -> contextlib.AbstractContextManager[BinaryIO]: ...


def publish(
    path: PathLike,
    mode: str = "w",
    *,
    encoding: str | None = None,
    newline: str | None = None,
    replace: bool = False,
    permissions: int | None = None,
) -> object:
    """Write a file that appears whole or not at all, and never replaces another.

    ::

        with publish("results/job_42.json") as f:
            json.dump(result, f)

    When the block ends, the file is on the disk under its name and survives a power cut. If the block raises, nothing
    is left behind.

    Args:
        path: the final name; its directory must exist.
        mode: ``w`` for text, ``wb`` for bytes.
        encoding: of text, UTF-8 unless given.
        newline: as for `open`.
        replace: replace a file or symbolic link of that name atomically. Devices, FIFOs, sockets and directories are
            always refused.
        permissions: the file's mode, such as ``0o640``; by default ``0o666`` less the umask. The file never has a
            wider mode, not even while it is written.

    Raises:
        AlreadyPublishedError: the name is taken (a ``FileExistsError``). This is raised before the block if the file
            exists then, otherwise at the end of the block.
        PublishError: the directory is missing, read-only or full, its file system has no hard links, or ``replace``
            found something that is not a file (an ``OSError``).
        InvalidNameError: ``path`` names no file.
    """
    return Publication(path, mode, encoding, newline, replace, permissions)


def _kind(mode: int) -> str:
    """Name a kind of file that is not a regular one."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
