"""Find and open collected files by descriptors, without following symbolic links."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.layout import HIDDEN

LIVE = ".live"
"""The suffix of live copies, which are still written to and not yet collected files."""

_CHUNK = 1024 * 1024


def is_plain(path: str) -> bool:
    """Return whether a file may have been collected to a path: below the root, without hidden parts.

    Other programs may write a catalog that is on a server, so its paths are checked.
    """
    return bool(path) and "\0" not in path and all(part and not part.startswith(HIDDEN) for part in path.split("/"))


@dataclass(slots=True)
class Found:
    """A regular file of the destination."""

    path: str
    directory: Directory
    name: str
    info: os.stat_result


class CollectedFiles:
    """Opens files by their paths, one directory after the other.

    Args:
        root: the destination's root.
    """

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.live: list[str] = []
        """The paths of the live copies that the last `walk` found."""
        self._last: tuple[str, Directory] = ("", root)

    def directory(self, path: str) -> Directory:
        """Open the directory at a path that `is_plain`. The last one stays open, because files come in groups.

        Raises:
            FileNotFoundError: it does not exist, or is a file.
            OSError: it cannot be opened; ELOOP if it is a symbolic link.
        """
        if self._last[0] != path:
            directory = self.root
            for part in path.split("/") if path else ():
                directory = _inner(directory, part)
            self._last = path, directory
        return self._last[1]

    def forget(self) -> None:
        """Forget the open directory, which may have been removed or replaced."""
        self._last = "", self.root

    def find(self, path: str) -> Found | None:
        """Return what is at a path that `is_plain`; None if it does not exist.

        Raises:
            OSError: it cannot be read; ELOOP if a directory on the way is a symbolic link.
        """
        above, _, name = path.rpartition("/")
        is_open = self._last[0] == above
        try:
            directory = self.directory(above)
            return Found(path, directory, name, os.stat(name, dir_fd=directory.fd, follow_symlinks=False))
        except FileNotFoundError:
            if not is_open or not above:
                return None
        self.forget()  # the open directory may have been removed and made again
        return self.find(path)

    def walk(self, unreadable: Callable[[str, OSError], None]) -> Iterator[Found]:
        """Yield every regular file that is neither hidden nor a live copy.

        Args:
            unreadable: called for each directory that cannot be read.
        """
        # Without recursion, because a path of 4,096 bytes can have 2,048 directories. A directory stays open only
        # while one of its own directories is still to be read.
        self.live.clear()
        left = [(self.root, "", "")]
        while left:
            above, name, path = left.pop()
            try:
                directory = _inner(above, name) if name else above
                below = yield from _files(directory, path, self.live)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError as error:
                unreadable(path, error)
            else:
                left += [(directory, inner, f"{path}{inner}/") for inner in below]


def _inner(directory: Directory, name: str) -> Directory:
    try:
        return directory.open(name)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        # open(2) fails with ENOTDIR for a link as well. The files may still exist in the directory that it points to.
        if stat.S_ISLNK(os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, f"{escape(name)!r} is a symbolic link, which is never followed") from None
        raise FileNotFoundError(errno.ENOENT, f"{escape(name)!r} is not a directory") from None


def _files(directory: Directory, prefix: str, live: list[str]) -> Generator[Found, None, list[str]]:
    """Yield the files in one directory, add the live copies to ``live``, and return the names of its directories."""
    below: list[str] = []
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(HIDDEN):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(name)
            elif not entry.is_file(follow_symlinks=False):
                continue
            elif name.endswith(LIVE):
                live.append(prefix + name)
            else:
                try:
                    info = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield Found(prefix + name, directory, name, info)
    return below


def open_file(found: Found) -> int:
    """Open a file for reading and return the descriptor. Never block: a FIFO may have replaced the file.

    Raises:
        OSError: it cannot be opened, or is no longer a regular file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(found.name, flags, dir_fd=found.directory.fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOENT, "it is not a regular file any more")
    return fd


def digest(fd: int, progress: Callable[[int], object]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal. Call ``progress`` with the size of each chunk."""
    hashed, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK, offset):
        hashed.update(chunk)
        offset += len(chunk)
        progress(len(chunk))
    return hashed.hexdigest()
