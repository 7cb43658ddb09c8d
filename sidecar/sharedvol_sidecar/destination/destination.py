"""The destination: make directories, and sync what must be durable before a source is removed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from sharedvol import worker_token
from sharedvol_sidecar.destination.ownership import Ownership
from sharedvol_sidecar.destination.template import is_spare, spare_names
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import open_private
from sharedvol_sidecar.fs.probe import Probe, try_to_name, try_to_store

_MOST_NAMES = 1_000
"""Names that are tried for one directory before its files are reported as failed."""


class Destination:
    """The tree that files are collected into.

    Args:
        root: its root.
        ownership: owner and mode of the files and directories.
        mark: a part of the names of test files, which no other process may use.
    """

    def __init__(self, root: Directory, ownership: Ownership | None = None, mark: str = "") -> None:
        self.root = root
        self.ownership = ownership or Ownership()
        self._test_name = f"test-{mark or worker_token()}"
        self._probe = Probe(self._test)
        self._open: dict[str, tuple[Directory, str]] = {}
        self._touched: dict[str, Directory] = {}

    def begin(self) -> None:
        """Begin a batch. Directories are opened again, because they may have been moved away since the last one."""
        self._open = {"": (self.root, "")}
        self._touched = {}

    def locate(self, target: str) -> tuple[Directory, str]:
        """Return the directory of a target, made if it is missing, and the target's name there.

        If a file has the name of a directory on the way, that directory gets another name (`spare_names`).

        Raises:
            OSError: a directory cannot be made.
        """
        path, _, name = target.rpartition("/")
        directory, actual = self._directory(path)
        self._touched[actual] = directory
        return directory, name

    def actual(self, path: str) -> str:
        """Return the path of the directory that `locate` uses for ``path``: a file may have one of its names.

        Raises:
            OSError: as for `locate`.
        """
        return self._directory(path)[1]

    def existing(self, path: str) -> Iterator[tuple[Directory, str]]:
        """Yield every directory that `locate` may have used for ``path`` at any time, and its path.

        Raises:
            OSError: a directory cannot be read.
        """
        if not path:
            yield self.root, ""
            return
        above, _, name = path.rpartition("/")
        for parent, actual in self.existing(above):
            for spare in sorted(other for other in os.listdir(parent.fd) if is_spare(other, name)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    yield parent.open(spare), _join(actual, spare)

    def touch(self, directory: Directory, path: str) -> None:
        """Have `sync` make the names in a directory durable."""
        self._touched[path] = directory

    def sync(self) -> dict[str, OSError]:
        """Make the names of files and directories that were made since `begin` durable.

        Returns:
            The error of each directory that failed, by its path.
        """
        failed = {}
        for path, directory in self._touched.items():
            try:
                directory.sync()
            except OSError as error:
                failed[path] = error.with_traceback(None)  # or it keeps this frame and its open files alive
        return failed

    def blame(self, error: OSError) -> None:
        """Return if an error concerns only one file, because the destination takes a file of ours.

        Raises:
            OSError: the destination takes no file now, or this process has no descriptor left.
        """
        if error.errno in OUT_OF_DESCRIPTORS:
            raise error
        failure = self._probe.failure()
        if failure is not None:
            raise failure from error

    def failure_in(self, path: str) -> OSError | None:
        """Return the error with which a directory refuses every name; None if it accepts one."""
        try:
            try_to_name(self._directory(path)[0], f".{self._test_name}")
        except OSError as error:
            return error.with_traceback(None)
        return None

    def staging(self, spool_id: str, slot: str) -> Directory:
        """Open the directory in which the copies of one mover's claims wait for their final names."""
        directory = open_private(self.root)
        for name in ("staging", spool_id, slot):
            directory = directory.make(name, 0o700)[0]
        return directory

    def close(self) -> None:
        """Close the directories that were opened since `begin`, except the root."""
        for directory in (*(directory for directory, _ in self._open.values()), *self._touched.values()):
            if directory is not self.root:
                directory.close()
        self._open, self._touched = {}, {}

    def is_short(self, floor: int) -> bool:
        """Return whether less than ``floor`` bytes are free; 0 is no limit."""
        return floor > 0 and self.free() < floor

    def free(self) -> int:
        """Return the number of free bytes."""
        found = os.fstatvfs(self.root.fd)
        return found.f_bavail * found.f_frsize

    def _test(self) -> None:
        try_to_store(open_private(self.root), self._test_name, lambda fd: self.ownership.apply(fd, os.fstat(fd)))

    def _directory(self, path: str) -> tuple[Directory, str]:
        found = self._open.get(path)
        if found is None:
            above, _, name = path.rpartition("/")
            parent, actual = self._directory(above)
            directory, made, name = _make(parent, name)
            if made:
                self.ownership.apply_to_directory(directory)
                self._touched[actual] = parent
            found = self._open[path] = directory, _join(actual, name)
        return found


def _make(parent: Directory, name: str) -> tuple[Directory, bool, str]:
    """Open or make a directory. Return it, whether it was made, and its name, which differs if a file has the name."""
    for number, spare in enumerate(spare_names(name), 1):
        try:
            return *parent.make(spare), spare
        except OSError as error:
            # The name is taken by something else, or by a symbolic link, which is never followed.
            if error.errno not in (errno.ENOTDIR, errno.ELOOP) or number == _MOST_NAMES:
                raise
    raise AssertionError  # `spare_names` is endless


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name
