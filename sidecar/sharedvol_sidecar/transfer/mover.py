"""Move files into the destination so that no kill, no crash and no writer can lose or double one.

The steps of a batch, each there because data is lost, doubled or seen half-written without it:

1. lease (`admission`): no process has the file open for writing, and one that opens it from here on waits
2. sync (`contents`): the contents are on the disk before any new name is (one syncfs(2) for the batch)
3. claim (`claimer`): rename into our claim directory, and check that it is the file that was leased
4. link to the final name (`placer`, `linker`): fails where the name is taken, and then another name is used
5. sync the destination's directories
6. commit the catalog's rows (`catalog_writer`): while there is a claim, its recovery writes the same row again
7. check the lease again (`release`): a writer that had resolved the path before the claim gets the same inode; it
   waits until the lease is released, so the name can still be withdrawn before it writes a byte
8. unlink the claim, sync its directory

At every point the file has a name in the spool, in a claim directory or in the destination. The sidecar that finds a
claim of a dead mover can tell by inode how far that mover got. A catalog that cannot be written stops no file: the file
has its final name, and the claim stays until the row is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.claims import Claims
from sharedvol_sidecar.transfer.contents import Contents
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.transfer.release import ClaimRelease
from sharedvol_sidecar.transfer.retries import FailedFiles


class Mover:
    """Moves what was admitted, a batch at a time.

    Args:
        claims: the claim directories.
        failed: the files that could not be moved.
        contents: makes the files durable.
        claimer: claims them.
        placer: gives them their final names.
        catalog: commits their rows.
        release: removes their claims.
    """

    def __init__(
        self,
        claims: Claims,
        failed: FailedFiles,
        contents: Contents,
        claimer: Claimer,
        placer: Placer,
        catalog: CatalogWriter,
        release: ClaimRelease,
    ) -> None:
        self._claims, self._failed, self._contents, self._claimer = claims, failed, contents, claimer
        self._placer, self._catalog, self._release = placer, catalog, release

    def new_pass(self) -> None:
        """Begin a pass."""
        self._failed.new_pass()
        self._claimer.new_pass()

    @property
    def without_room(self) -> bool:
        """Whether this pass met a file for whose claim the spool had no room."""
        return self._claimer.without_room

    @property
    def exhausted(self) -> bool:
        """Whether this pass met a file for whose directories there were no descriptors."""
        return self._claimer.exhausted

    def move(self, items: Sequence[Item]) -> None:
        """Move a batch.

        Raises:
            DestinationError: the destination takes nothing now. Every file has its name in the spool, or
                is a claim that the next pass finds.
            SpoolError: nothing can be claimed in the spool now.
        """
        try:
            due = [item for item in items if self._failed.is_due(item)]
            self._contents.sync(due)
            read = [item for item in due if self._contents.read(item)]
            while read:
                read = self._move_what_fits(read)
        finally:
            for item in items:
                item.close()

    def _move_what_fits(self, items: list[Item]) -> list[Item]:
        """Claim files and move them. Return those for which the spool has no room until these are out of it."""
        batch = self._claims.new_batch()
        try:
            claimed: list[Item] = []
            left: list[tuple[Item, OSError]] = []
            for item in items:
                try:
                    if self._claimer.claim(item, batch):
                        claimed.append(item)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    left.append((item, error.with_traceback(None)))
            placed = self._placer.place(claimed)
            if self._catalog.add(placed):
                self._release.release(placed)
            else:
                self._release.keep(placed)
            if any(item.done for item in claimed):
                return [item for item, _ in left]
            if left and self._claims.failure() is not None:
                self._claimer.without_room = True
                return []
            for item, failed in left:  # the spool has room: it is about this file
                self._claimer.fail(item.candidate, failed)
            return []
        finally:
            batch.remove()
