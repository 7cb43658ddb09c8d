"""Make the contents of files durable, and take their digests, before the files are claimed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from sharedvol.errors import describe
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.content import SYNC_EVERY, digest
from sharedvol_sidecar.fs.directory import Directory, sync_filesystem, sync_range
from sharedvol_sidecar.monitor.liveness import Liveness, beating
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.release import OPENED
from sharedvol_sidecar.transfer.retries import FailedFiles

_FEW = 8


class Contents:
    """Syncs and reads the files of one spool.

    Args:
        spool: the spool's root.
        linker: knows which files are linked and which are copied.
        failed: counts and reports the files that cannot be read.
        events: receives the files that a writer opened again.
        liveness: receives a sign of life for each file, and for each chunk of a long one.
        digests: whether to take the digest of every file, which reads it whole.
    """

    def __init__(
        self,
        spool: Directory,
        linker: Linker,
        failed: FailedFiles,
        events: Events,
        liveness: Liveness,
        digests: bool,
    ) -> None:
        self._spool, self._linker, self._failed = spool, linker, failed
        self._events, self._liveness, self._digests = events, liveness, digests

    def sync(self, items: Sequence[Item]) -> None:
        """Make the contents of the files that are linked durable. A file of which that fails gets a problem."""
        items = [item for item in items if not self._linker.is_copied(item)]
        synced = False
        if len(items) > _FEW and not any(item.work > SYNC_EVERY for item in items):
            with contextlib.suppress(OSError):  # then each by itself, to find the one that fails
                sync_filesystem(self._spool)
                synced = True
        for item in items if not synced else ():
            try:
                self._sync_one(item)
            except OSError as error:
                item.problem = f"cannot be written to the disk: {describe(error)}; it stays"

    def _sync_one(self, item: Item) -> None:
        # In slices: one sync of a long file would take minutes.
        for offset in range(0, item.work - SYNC_EVERY, SYNC_EVERY):
            self._liveness.beat()
            sync_range(item.fd, offset, SYNC_EVERY)
        self._liveness.beat()
        os.fsync(item.fd)

    def read(self, item: Item) -> bool:
        """Take the digest of a file that will be linked. Return False if the file cannot be moved now.

        The digests of other files are taken when these are copied.
        """
        self._liveness.beat()
        if item.problem:
            self._failed.fail(item, item.problem)
            return False
        if not self._digests or self._linker.is_copied(item) or item.hollow:
            return True
        try:
            item.sha256 = digest(item.fd, item.info.st_size, beating(self._liveness, item.going_on))
        except OSError as error:
            self._failed.fail(item, f"cannot read it: {describe(error)}; it stays")
            return False
        if item.sha256 is not None or item.candidate.claimed:
            return True  # one that may have its final name already has to be hidden from its writer first
        self._events.put_back(item.candidate.path, OPENED)
        return False
