"""The collected files' side: directories made on the way, and what must be synced before a source may go."""

from __future__ import annotations

import os
from pathlib import Path

from sharedvol_sidecar.claims import open_private
from sharedvol_sidecar.directories import Directory


class Destination:
    """The tree that files are collected into.

    Args:
        root: its root.
    """

    def __init__(self, root: Directory) -> None:
        self.root = root
        self._open: dict[str, Directory] = {}
        self._touched: dict[str, Directory] = {}

    def begin(self) -> None:
        """A batch begins. Directories are looked up anew: somebody may have moved them away since."""
        self._open = {"": self.root}
        self._touched = {}

    def locate(self, target: str) -> tuple[Directory, str]:
        """The directory of a target, made where it is missing, and its name there.

        Raises:
            OSError: it cannot be made; FileExistsError or NotADirectoryError where a file is in the way.
        """
        path, _, name = target.rpartition("/")
        directory = self._directory(path)
        self._touched[path] = directory
        return directory, name

    def sync(self) -> None:
        """The names linked since `begin`, and those of new directories, are on the disk."""
        for directory in self._touched.values():
            directory.sync()

    def staging(self, spool_id: str, slot: str) -> Directory:
        """Where the copies of one mover's claims wait for their names."""
        directory = open_private(self.root)
        for name in ("staging", spool_id, slot):
            directory = directory.make(name, 0o700)[0]
        return directory

    def _directory(self, path: str) -> Directory:
        found = self._open.get(path)
        if found is None:
            above, _, name = path.rpartition("/")
            parent = self._directory(above)
            found, made = parent.make(name)
            if made:
                self._touched[above] = parent
            self._open[path] = found
        return found


def shares_file_system(spool: Directory, destination: Directory) -> bool:
    """Whether a file can be linked from one into the other: tried, with a file that is removed again.

    Equal device numbers don't tell: two bind mounts of one file system are two mounts, and link(2)
    refuses to cross them.

    Raises:
        OSError: one of the two cannot be written.
    """
    name = f"probe-{os.urandom(8).hex()}"
    ours, theirs = open_private(spool), open_private(destination)
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=ours.fd))
    # In the destination too, though it may be the same file system: that it can be written is asked as well.
    os.close(os.open(f"{name}-w", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=theirs.fd))
    os.unlink(f"{name}-w", dir_fd=theirs.fd)
    try:
        os.link(name, name, src_dir_fd=ours.fd, dst_dir_fd=theirs.fd, follow_symlinks=False)
    except OSError:
        return False
    else:
        os.unlink(name, dir_fd=theirs.fd)
        return True
    finally:
        os.unlink(name, dir_fd=ours.fd)


def overlap(spool: Path, destination: Path) -> bool:
    """Whether one lies in the other, or they are one directory, by whatever paths they were named."""
    return _within(spool, destination) or _within(destination, spool)


def _within(inner: Path, outer: Path) -> bool:
    wanted = os.stat(outer)
    return any(os.path.samestat(os.stat(above), wanted) for above in (inner.resolve(), *inner.resolve().parents))
