"""Make a file appear whole, once, without overwriting.

The file is written under a temporary name in the destination's directory, synced, and linked to its
final name: link(2) fails where the name is taken, so nobody is overwritten, and a reader sees either
nothing or all of it. Then the directory is synced, so that a power cut cannot take the name back, and
the temporary name goes.

The writer holds flock(2) on the temporary file as long as it lives. So a temporary file whose lock is
free was left by a writer that died, whatever container it ran in: `stale_temporaries` finds those.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Literal, TextIO, overload

from sharedvol.errors import AlreadyPublishedError, InvalidNameError, PublishError, describe
from sharedvol.identity import worker_token
from sharedvol.network import NetworkPolicy
from sharedvol.publishing.mark import marked_time

TEMPORARY_SUFFIX = ".sharedvol-tmp"
"""Every temporary name is ``.<worker>-<random><suffix>``: hidden, so that no collector takes it."""

PathLike = str | os.PathLike[str]


class Publication:
    """The context manager that `publish` returns; it gives the file to write to."""

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
        if _is_temporary(self.path.name):
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
        self._directory = self._open_directory()
        try:
            self._refuse_what_is_there()
            self._fd = self._create()
            # The caller's file is a duplicate: whatever closes it (some libraries do), ours still
            # holds the lock and can be synced.
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
            # A forked child leaves the block too: the file is its parent's, to publish or to give up.
            self._abandon_in_child()
            return
        try:
            if kind is None:
                self._file.close()  # flushes; a full disk is told here, and then nothing is published
                self._publish()
        except (PublishError, AlreadyPublishedError):
            raise
        except OSError as failure:
            raise self._failed("publish", failure) from failure
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
            self._refuse_what_is_there()  # again: it may have been made while the block ran
            os.rename(self._temporary, self.path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._temporary = ""
        else:
            self._link()
        try:
            os.fsync(self._directory)
        except OSError as error:
            # Readers may have the file by now, so it is not taken back.
            raise PublishError(
                error.errno or errno.EIO,
                f"{str(self.path)!r} is published, but may not survive a power cut: its directory cannot be "
                f"synced: {describe(error)}; look after the disk",
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
            raise self._taken() from None
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise PublishError(
                    error.errno,
                    f"cannot publish {str(self.path)!r} without overwriting: the file system there has no "
                    f"hard links: {describe(error)}; publish to another volume, or pass replace=True",
                    str(self.path),
                ) from error
            raise

    def _open_directory(self) -> int:
        try:
            return os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("open the directory of", error) from error

    def _create(self) -> int:
        """Open a new temporary file and lock it."""
        while True:
            name = f".{worker_token()}-{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            # Never wider than the final mode: what another user opens meanwhile stays open after a chmod.
            mode = 0o666 if self._permissions is None else self._permissions & 0o777
            try:
                fd = os.open(name, flags, mode, dir_fd=self._directory)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._failed("write", error) from error
            self._temporary, self._fd = name, fd
            # On a file system without flock the temporary cannot be told from a stale one, and
            # `remove_stale_temporaries` finds no lock to take and leaves it.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            # A cleaner may have taken it for stale between its creation and its lock.
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)
            self._fd = -1  # or a failure of the next attempt would close it twice

    def _refuse_what_is_there(self) -> None:
        """Refuse a name that is taken, or with ``replace`` one that is not a file's.

        Raises:
            AlreadyPublishedError, PublishError: what `publish` raises for that.
        """
        try:
            mode = os.stat(self.path.name, dir_fd=self._directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("look for", error) from error
        if not self._replace:
            raise self._taken()
        # A symbolic link is replaced itself. A device or FIFO has users that rename(2) would cut off.
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise PublishError(
                errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
                f"cannot replace {str(self.path)!r}: it is {_kind(mode)}, and only files are replaced; "
                "publish under another name, or remove it first",
                str(self.path),
            )

    def _taken(self) -> AlreadyPublishedError:
        return AlreadyPublishedError(
            errno.EEXIST,
            f"{str(self.path)!r} exists and was left as it is: choose another name (see unique_path), "
            "or pass replace=True",
            str(self.path),
        )

    def _failed(self, what: str, error: OSError) -> PublishError:
        hint = {
            errno.ENOENT: "create the directory, or mount its volume",
            errno.EROFS: "mount the volume read-write",
            errno.EACCES: "give this user write permission on the directory",
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some space, or raise the quota",
        }.get(error.errno or 0, "nothing was published")
        return PublishError(
            error.errno or errno.EIO, f"cannot {what} {str(self.path)!r}: {describe(error)}; {hint}", str(self.path)
        )

    def _drop(self) -> None:
        """Remove the temporary name and close: nothing is left behind."""
        if self._fd >= 0:
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._fd)
        if self._directory >= 0:
            os.close(self._directory)
        self._fd = self._directory = -1

    def __del__(self) -> None:
        # A block that was entered and never left, as with `__enter__` alone, gives up the file when it is dropped.
        with contextlib.suppress(Exception):  # it was not entered; the interpreter may be ending
            if self._pid == os.getpid():
                self._drop()

    def _abandon_in_child(self) -> None:
        # Point the duplicate at /dev/null first: closing the caller's file would flush what the parent
        # had buffered when it forked, and the parent writes that itself.
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

    When the block ends the file is on the disk under its name, safe from power loss. When it raises,
    nothing is left behind.

    Args:
        path: the final name; its directory must exist.
        mode: ``w`` for text, ``wb`` for bytes.
        encoding: of text, UTF-8 unless given.
        newline: as for `open`.
        replace: replace a file or symbolic link of that name, at once, instead of refusing. Devices, FIFOs, sockets
            and directories are refused.
        permissions: the file's mode, such as ``0o640``; else ``0o666`` less the umask. The file never has a wider mode,
            not even while it is written.

    Raises:
        AlreadyPublishedError: the name is taken (a ``FileExistsError``): told before the block where it
            already is, else at its end.
        PublishError: the directory is missing, read-only, full, or knows no hard links, or ``replace`` found something
            that is not a file (an ``OSError``).
        InvalidNameError: ``path`` names no file.
    """
    return Publication(path, mode, encoding, newline, replace, permissions)


def stale_temporaries(
    directory: PathLike, *, allow_network: bool = False, strict: bool | None = None
) -> Iterator[Path]:
    """The temporary files in ``directory`` whose writers are dead, not looking below it.

    Whether a writer lives is asked of the kernel: it holds flock(2) on its file.

    Args:
        directory: where to look.
        allow_network: accept a network file system without a warning.
        strict: refuse one; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        OSError: the directory cannot be read.
        NetworkFileSystemError: it is on a network file system, and this is ``strict``.
    """
    for name, fd, _ in _stale(directory, NetworkPolicy(allow_network, strict)):
        os.close(fd)
        yield Path(directory, name)


def remove_stale_temporaries(
    directory: PathLike, *, allow_network: bool = False, strict: bool | None = None
) -> list[Path]:
    """Remove what `stale_temporaries` finds, and return it. A living writer's file is never touched.

    Args:
        directory: the directory. Its subdirectories are not searched.
        allow_network: accept a network file system without a warning.
        strict: refuse one; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        OSError, NetworkFileSystemError: as `stale_temporaries`.
    """
    removed = []
    for name, fd, parent in _stale(directory, NetworkPolicy(allow_network, strict)):
        try:
            # Under the lock: a writer that created the file but has not locked it yet waits for us,
            # then sees that its name is gone and takes another.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)
                removed.append(Path(directory, name))
        finally:
            os.close(fd)
    return removed


def _kind(mode: int) -> str:
    """What is not a regular file, in words."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def _stale(directory: PathLike, network: NetworkPolicy) -> Iterator[tuple[str, int, int]]:
    """Yield each stale temporary: its name, a descriptor that holds its lock, and one of its directory.

    The caller closes the first. The path of the directory is looked up once, so that all names are of one directory.
    """
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        network.check(parent, "directory", os.fspath(directory))
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if _is_temporary(entry.name)]
        for name in names:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            except OSError:
                continue  # published or removed since, a symbolic link, or not ours to read
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Now, with the lock: its writer may have published it between the open and the lock.
                    if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=parent, follow_symlinks=False)):
                        yield name, fd, parent
                        continue
            except OSError:
                pass  # its writer lives, or has just ended
            os.close(fd)
    finally:
        os.close(parent)
