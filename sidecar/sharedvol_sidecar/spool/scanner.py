"""The files in the spool, one by one: the scan is the truth, events are only a hint to scan.

Streamed: the memory it takes does not grow with the backlog.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from sharedvol import stale_temporaries
from sharedvol.errors import describe
from sharedvol.publishing.temporaries import TEMPORARY_SUFFIX
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS, RAISE_LIMIT
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.layout import HIDDEN, Layout, Origin, Place

MAX_DEPTH = 64


@dataclass(slots=True, eq=False)
class Candidate:
    """A regular file in a source.

    Attributes:
        directory: where it is.
        name: its name there.
        path: its path relative to the spool.
        origin: what the path says of it.
        claimed: whether it is in a claim directory already.
    """

    directory: Directory
    name: str
    path: str
    origin: Origin
    claimed: bool = False


class Scanner:
    """Walks one spool.

    Args:
        spool: its root.
        layout: what its directories mean.
        events: receives what is left and why.
        visit: called with every directory that is walked, to watch it.
        shard: ``(k, n)``: only the k-th of n parts of the files, by a hash of the path.
        whole_kinds: kinds that are not parted: all of them are the first part's.
        is_followed: whether a file with that inode may be a followed log. Those are the first part's as well, whatever
            their kind is: a pass judges the logs that it did not see.
    """

    def __init__(
        self,
        spool: Directory,
        layout: Layout,
        events: Events,
        visit: Callable[[Directory], None] | None = None,
        shard: tuple[int, int] = (0, 1),
        whole_kinds: tuple[str, ...] = (),
        is_followed: Callable[[int], bool] = lambda inode: False,
    ) -> None:
        self._spool, self._layout, self._events, self._visit = spool, layout, events, visit
        self.shard, self._whole_kinds, self._is_followed = shard, whole_kinds, is_followed
        self.containers: set[str] = set()
        """The directories at the top that the last scan found."""
        self.unread: set[str] = set()
        """Those in which it could not read everything."""
        self.exhausted = False
        """Whether the last scan met a directory for which there was no descriptor."""

    def candidates(self, enter: Callable[[str], bool] | None = None) -> Generator[Candidate, None, None]:
        """Yield every file of every source, and report everything else. Close the generator.

        Args:
            enter: decides for each directory at the top whether to scan it.

        Raises:
            OSError: the spool itself cannot be read.
        """
        self.containers.clear()
        self.unread.clear()
        self.exhausted = False
        for entry in self._entries(self._spool, visit=True):
            if entry.is_dir(follow_symlinks=False):
                self.containers.add(entry.name)
                if enter is not None and not enter(entry.name):
                    self._events.elsewhere()
                    continue
            yield from self.within(entry)

    def top(self) -> Generator[os.DirEntry[str], None, None]:
        """Yield the directories at the top of the spool. Close the generator.

        Raises:
            OSError: the spool itself cannot be read.
        """
        for entry in self._entries(self._spool, visit=False):
            if entry.is_dir(follow_symlinks=False):
                yield entry

    def within(self, entry: os.DirEntry[str]) -> Generator[Candidate, None, None]:
        """Yield every file of one directory at the top, which is a container's or a kind's. Close the generator."""
        if entry.name in self._layout.kinds:
            yield from self._walk(self._spool, entry, entry.name, 1)
        elif entry.is_dir(follow_symlinks=False):
            yield from self._container(entry)
        else:
            self._leave(entry, entry.name)

    def claimed(self, root: Directory) -> Iterator[Candidate]:
        """The files in a claim directory, whose paths below it are those they had in the spool."""
        yield from self._files(root, "", 0, claimed=True)

    def _container(self, entry: os.DirEntry[str]) -> Iterator[Candidate]:
        container = self._open(self._spool, entry.name, entry.name)
        if container is None:
            return
        for kind in self._readable(container, entry.name, visit=True):
            if kind.name in self._layout.kinds:
                yield from self._walk(container, kind, f"{entry.name}/{kind.name}", 2)

    def _walk(
        self,
        parent: Directory,
        entry: os.DirEntry[str],
        path: str,
        depth: int,
        claimed: bool = False,
    ) -> Iterator[Candidate]:
        if not entry.is_dir(follow_symlinks=False):
            self._leave(entry, path)
            return
        if depth > MAX_DEPTH:
            self._events.refused(path, f"more than {MAX_DEPTH} directories deep: move it up")
            return
        directory = self._open(parent, entry.name, path)
        if directory is not None:
            yield from self._files(directory, path, depth, claimed)

    def _files(self, directory: Directory, path: str, depth: int, claimed: bool = False) -> Iterator[Candidate]:
        temporaries = False
        place = self._layout.place(path)
        for entry in self._readable(directory, path, visit=not claimed, hidden=True):
            name = entry.name
            if name.startswith(HIDDEN):
                temporaries = temporaries or name.endswith(TEMPORARY_SUFFIX)
                continue
            below = f"{path}/{name}" if path else name
            if entry.is_file(follow_symlinks=False):
                if not claimed and not self._is_ours(entry, below, place):
                    continue
                origin = place.origin(name) if place is not None else None
                if origin is None and claimed:
                    detail = f"claimed under other --kinds or --pattern, and lies in {directory.shown}: use those again"
                    self._events.failed(below, detail)
                elif origin is None:
                    self._leave(entry, below)
                else:
                    yield Candidate(directory, name, below, origin, claimed)
            elif entry.is_dir(follow_symlinks=False):
                yield from self._walk(directory, entry, below, depth + 1, claimed)
            else:
                self._leave(entry, below)
        if temporaries:
            try:
                self._count_unfinished(directory, path)
            except OSError as error:
                self._cannot_read(path, error)

    def _is_ours(self, entry: os.DirEntry[str], path: str, place: Place | None) -> bool:
        """Return whether a file is in this scan's part."""
        number, parts = self.shard
        if parts == 1:
            return True
        whole = (place is not None and place.kind in self._whole_kinds) or self._is_followed(entry.inode())
        return (0 if whole else zlib.crc32(os.fsencode(path)) % parts) == number

    def _entries(self, directory: Directory, *, visit: bool, hidden: bool = False) -> Iterator[os.DirEntry[str]]:
        # Watched before it is read: what appears after the reading is told by an event.
        if visit and self._visit is not None:
            self._visit(directory)
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if hidden or not entry.name.startswith(HIDDEN):
                    yield entry

    def _readable(
        self, directory: Directory, path: str, *, visit: bool, hidden: bool = False
    ) -> Iterator[os.DirEntry[str]]:
        """The entries of a directory below the spool's root; one that cannot be read does not end the scan."""
        try:
            yield from self._entries(directory, visit=visit, hidden=hidden)
        except OSError as error:
            self._cannot_read(path, error)

    def _cannot_read(self, path: str, error: OSError, remedy: str = "") -> None:
        self.unread.add(path.partition("/")[0])
        if error.errno in OUT_OF_DESCRIPTORS:  # deep down: all the directories above it are open
            self.exhausted, remedy = True, RAISE_LIMIT
        self._events.failed(path, f"cannot read the directory: {describe(error)}{'; ' * bool(remedy)}{remedy}")

    def _open(self, parent: Directory, name: str, path: str) -> Directory | None:
        try:
            return parent.open(name)
        except FileNotFoundError:
            return None  # removed since
        except OSError as error:
            self._cannot_read(path, error, "give read permission")
            return None

    def _leave(self, entry: os.DirEntry[str], path: str) -> None:
        if entry.is_symlink():
            self._events.refused(path, "a symbolic link, which is never followed: put the file itself there")
        elif entry.is_file(follow_symlinks=False):
            self._events.unmatched(path, "in no source, or its name tells no container; see --pattern")
        elif not entry.is_dir(follow_symlinks=False):
            self._events.refused(path, "a FIFO, socket or device, which is never opened: remove it")

    def _count_unfinished(self, directory: Directory, path: str) -> None:
        for temporary in stale_temporaries(f"/proc/self/fd/{directory.fd}", allow_network=True):
            self._events.unfinished(
                f"{path}/{temporary.name}",
                "its writer died before it was published; look at it, then remove it "
                "(sharedvol.remove_stale_temporaries)",
            )
