"""The destination as it is: files found and opened relative to descriptors, no symbolic link followed."""

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
"""Names that end so are still written to, and are no collected files yet."""

_CHUNK = 1024 * 1024


def is_plain(path: str) -> bool:
    """Whether a catalogued path is one that a file may have been collected to: below the root, nothing hidden.

    A catalog on a server can be written by others than the sidecar.
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
    """Reaches files by their paths, one directory after the other.

    Args:
        root: the destination's root.
    """

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.live: list[str] = []
        """The paths of the live copies that the last `walk` came across."""
        self._last: tuple[str, Directory] = ("", root)

    def directory(self, path: str) -> Directory:
        """The directory at a path that `is_plain`; the last one is kept, as files come in groups.

        Raises:
            FileNotFoundError: it is not there, or a file is in its place.
            OSError: it cannot be told; ELOOP where a symbolic link is in its place.
        """
        if self._last[0] != path:
            directory = self.root
            for part in path.split("/") if path else ():
                directory = _inner(directory, part)
            self._last = path, directory
        return self._last[1]

    def forget(self) -> None:
        """Look directories up anew: they may have been removed or replaced."""
        self._last = "", self.root

    def find(self, path: str) -> Found | None:
        """What is at a path that `is_plain`; None where there is nothing.

        Raises:
            OSError: it cannot be told; ELOOP where a symbolic link is in the place of a directory.
        """
        above, _, name = path.rpartition("/")
        kept = self._last[0] == above
        try:
            directory = self.directory(above)
            return Found(path, directory, name, os.stat(name, dir_fd=directory.fd, follow_symlinks=False))
        except FileNotFoundError:
            if not kept or not above:
                return None
        self.forget()  # the directory that was kept may be one that was removed, and made again
        return self.find(path)

    def walk(self, unreadable: Callable[[str, OSError], None]) -> Iterator[Found]:
        """Every regular file, but hidden and unfinished ones.

        Args:
            unreadable: told of each directory that cannot be read.
        """
        # No recursion: a path of 4,096 bytes has up to 2,048 directories. Nor is each of those kept open: only the
        # ones in which others wait for their turn.
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
        # open(2) gives ENOTDIR for a link, too. Whoever put a link there may have moved the files behind it.
        if stat.S_ISLNK(os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, f"{escape(name)!r} is a symbolic link, and none is followed") from None
        raise FileNotFoundError(errno.ENOENT, f"{escape(name)!r} is no directory") from None


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
    """A descriptor to read it by. Never waits: what was a file may be a FIFO by now.

    Raises:
        OSError: it cannot be opened, or is no regular file any more.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(found.name, flags, dir_fd=found.directory.fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOENT, "it is no regular file any more")
    return fd


def digest(fd: int, progress: Callable[[int], object]) -> str:
    """The SHA-256 of a file's contents, in hexadecimal; ``progress`` is told of bytes as they are read."""
    hashed, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK, offset):
        hashed.update(chunk)
        offset += len(chunk)
        progress(len(chunk))
    return hashed.hexdigest()
