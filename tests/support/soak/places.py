"""The file systems of a soak: small enough to be filled, in the mount namespace of `torture.isolated`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.torture.filesystems import LoopFileSystem

_SIZE = 4096 << 20  # bytes; they take memory only where they are written
_LEFT = 8192  # bytes that a filled disk has left


@dataclass(frozen=True)
class Mode:
    """How files get into the destination.

    Attributes:
        spool, destination: kinds of file systems; the same: files are linked.
        compress: how finished logs are compressed.
    """

    spool: str
    destination: str
    compress: str = "none"


MODES = {
    "link": Mode("ext4_4k", "ext4_4k"),
    "copy": Mode("xfs", "ext4"),
    "gzip": Mode("xfs", "xfs", "gzip"),
}


class Places:
    """The spool and the destination of one run.

    Args:
        mode: which file systems.
        top: where they are mounted.

    Raises:
        NotHere: this machine does not allow it.
    """

    def __init__(self, mode: Mode, top: Path) -> None:
        kinds = dict.fromkeys([mode.spool, mode.destination])
        self._systems = {kind: LoopFileSystem(kind, top / kind, room=_SIZE) for kind in kinds}
        self.mounts = [top / kind for kind in kinds]
        self.spool = top / mode.spool / "spool"
        self.collected = top / mode.destination / "collected"
        for directory in (self.spool, self.collected):
            directory.mkdir()

    @contextlib.contextmanager
    def full(self, mount: Path) -> Iterator[None]:
        """Fill a file system meanwhile."""
        filler = mount / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                _fill(file.fileno())
                yield
            finally:
                filler.unlink()


def _fill(fd: int) -> None:
    """Until little is left, in ever smaller steps; others write meanwhile."""
    size, end = 1 << 30, 0
    while size >= _LEFT:
        try:
            os.posix_fallocate(fd, end, size)
            end += size
        except OSError:
            size //= 2
