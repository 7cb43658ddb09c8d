"""Release claims: remove those whose files have their final names, or put the files back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from sharedvol.errors import describe
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.monitor.liveness import Liveness
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claims import Claims
from sharedvol_sidecar.transfer.following import ClaimFollower
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker

OPENED = "a writer opened it again while it was moved"


class ClaimRelease:
    """Removes the claims of files that have their final names.

    Args:
        destination: where the files are.
        claims: the claim directories.
        linker: knows what the collected files are promised to be.
        catalog: takes back the rows of files that are put back.
        follower: knows which files are followed.
        events: counts and reports the collected files.
        liveness: receives a sign of life for each file.
    """

    def __init__(
        self,
        destination: Destination,
        claims: Claims,
        linker: Linker,
        catalog: CatalogWriter,
        follower: ClaimFollower,
        events: Events,
        liveness: Liveness,
    ) -> None:
        self._destination, self._claims, self._linker, self._catalog = destination, claims, linker, catalog
        self._follower, self._events, self._liveness = follower, events, liveness

    def release(self, placed: Sequence[Item]) -> None:
        """Remove the claims of the files that no writer opened. A file is collected as soon as its claim is removed."""
        # One by one: a writer that comes between the check and the end of the lease is not seen.
        self._remove(item for item in placed if self._confirm(item))

    def keep(self, placed: Sequence[Item]) -> None:
        """Keep the claims until the catalog can be written. The next pass finds them."""
        for item in placed:
            if self._is_left_alone(item):
                self._events.uncatalogued()

    def _confirm(self, item: Item) -> bool:
        """Check again whether a writer came back. Return True if not: then the claim can be removed.

        A writer that opens the file after the last check is not seen. So nothing that takes time comes between that
        check and the end of the lease: the live copy of a log is removed before it.
        """
        if not self._is_left_alone(item):
            return False
        return not (item.followed or item.ended) or (self._is_unfollowed(item) and self._is_left_alone(item))

    def _is_unfollowed(self, item: Item) -> bool:
        """Remove a log's live copy, or remember a log that has ended. Return False if that fails: the claim stays."""
        try:
            self._follower.unfollow(item)
        except OSError as error:
            self._keep_claim(item, error)
            return False
        return True

    def _keep_claim(self, item: Item, error: OSError) -> None:
        """Report a claim that stays. The next pass finds it."""
        self._destination.blame(error)
        self._events.failed(item.candidate.path, f"its claim stays: {describe(error)}")

    def _is_left_alone(self, item: Item) -> bool:
        why = OPENED
        if lease.is_intact(item.fd) if item.leased else item.unchanged():
            if self._linker.is_as_promised(item):
                return True
            why = "its owner changed its owner, mode or attributes while it was moved"
        self._catalog.remove(item.target)
        put_back(item, self._claims)
        self._events.put_back(item.candidate.path, why)
        return False

    def _remove(self, confirmed: Iterable[Item]) -> None:
        done = []
        for item in confirmed:
            assert item.claim is not None
            self._liveness.beat()
            try:
                # It is missing only where the same file was claimed under another name.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(item.candidate.name, dir_fd=item.claim.fd)
            except OSError as error:
                self._keep_claim(item, error)
                continue
            done.append(item)
            item.close()
            item.done = True
            self._count(item)
        for directory in {id(item.claim): item.claim for item in done if item.claim is not None}.values():
            directory.sync()
        # The copies' names go last, when their claims cannot come back: by them a final name is known as ours.
        for item in done:
            if item.staged is not None:
                os.unlink(item.staging_name, dir_fd=item.staged.fd)

    def _count(self, item: Item) -> None:
        """Count and report a collected file."""
        candidate = item.candidate
        recovered = candidate.claimed and not item.in_destination and not self._claims.is_own(item.claim_path)
        root = self._destination.root.shown
        self._events.collected(item, candidate.path, candidate.origin.container, root, recovered=recovered)


def put_back(item: Item, claims: Claims) -> None:
    """Withdraw a claimed file from the destination, and return it to its place in the spool."""
    try:
        if item.in_destination:
            return  # a live copy is where it is to be
        item.withdraw_from_destination()
    except OSError:
        return  # in the spool it would be a new file, and be collected a second time next to that name
    item.put_back(claims.put_backs)
