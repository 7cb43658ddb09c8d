"""How many files are moved together."""

from __future__ import annotations

import resource

from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.transfer.item import Item

MAX_BATCH = 2_000
"""Files that are leased and synced together. More saves little, and delays the writers that wait for one."""

MAX_BATCH_BYTES = 256 * 1024 * 1024
"""Bytes that are read for their digests, or copied, while all leases of the batch are held."""

MAX_FOLLOWED = 2_000
"""Logs that are followed at once; each has three descriptors. Of more the rest waits until it is closed."""

MAX_CONNECTIONS = 100
"""Connections that the HTTP server has open at once; where there are few descriptors, an eighth of them."""

_RESERVE = 200  # descriptors for everything else: a scan holds two for each directory it is in
_DAY = 86_400 * 1_000_000_000


class FileBatch:
    """Files that are admitted one by one until descriptors or patience would run out.

    Args:
        descriptors: how many it may need.
        depth: of the destination's directories, without those of the file's own path.
        size: bytes that it may read; a larger file is a batch of its own.
    """

    def __init__(self, descriptors: int, depth: int, size: float) -> None:
        self.items: list[Item] = []
        self._left, self._depth, self._size = descriptors, depth, size
        self._directories: set[tuple[Directory, int]] = set()
        self._last: tuple[Directory, int] | None = None

    @property
    def full(self) -> bool:
        return len(self.items) >= MAX_BATCH or self._left <= 0 or self._size <= 0

    def drop_last(self) -> None:
        """Close the last one that was added; it is not moved."""
        self.items.pop().close()

    def add(self, item: Item) -> None:
        """One more."""
        self.items.append(item)
        self._left -= 2  # the file, and its copy
        self._size -= item.work
        # A directory may need one in the spool and, with all those above it, one among the claims and one in
        # the destination; there another for another day. Files that each have their own are common.
        directory = (item.candidate.directory, item.info.st_mtime_ns // _DAY)
        if directory == self._last:
            return
        self._last = directory
        if directory not in self._directories:
            self._directories.add(directory)
            self._left -= 1 + 2 * item.candidate.path.count("/") + self._depth


def raise_descriptors() -> int:
    """How many a batch may have open, after the limit was raised as far as is allowed and of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _reachable(hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(1, limit - _RESERVE - connections())


def connections() -> int:
    """How many connections the HTTP server may have open: batches leave their descriptors alone."""
    return max(1, min(MAX_CONNECTIONS, _reachable(resource.getrlimit(resource.RLIMIT_NOFILE)[1]) // 8))


def _reachable(hard: int) -> int:
    """The limit of descriptors that is allowed and of use."""
    wanted = MAX_BATCH * 3 + 3 * MAX_FOLLOWED + _RESERVE + MAX_CONNECTIONS
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
