"""Claim files: rename each into the mover's own directory, where neither a writer nor another mover finds it."""

from __future__ import annotations

import errno
import os

from sharedvol.errors import describe
from sharedvol_sidecar.errors import FULL, OUT_OF_DESCRIPTORS, RAISE_LIMIT, SpoolError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.claims import Batch, Claims
from sharedvol_sidecar.transfer.following import ClaimFollower
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker, is_within


class Claimer:
    """Claims the files of one spool.

    Args:
        spool: the spool's root.
        claims: the claim directories.
        linker: gives the final names.
        follower: knows which files are followed.
        events: receives the files that cannot be claimed.
    """

    def __init__(
        self, spool: Directory, claims: Claims, linker: Linker, follower: ClaimFollower, events: Events
    ) -> None:
        self._spool, self._claims, self._linker = spool, claims, linker
        self._follower, self._events = follower, events
        self.closed: set[str] = set()
        """Directories of the destination that took no name in this pass: files for them are not claimed."""
        self.without_room = False
        """Whether this pass met a file for whose claim the spool had no room."""
        self.exhausted = False
        """Whether this pass met a file for whose directories there were no descriptors."""

    def new_pass(self) -> None:
        """Begin a pass: directories that took no name in the last one are tried again."""
        self.closed.clear()
        self.exhausted = self.without_room = False

    def claim(self, item: Item, batch: Batch) -> bool:
        """Rename a file into the claim directory. Return False if it is not to be moved now.

        Raises:
            SpoolError: nothing can be claimed in the spool now.
            OSError: the spool has no room for this claim, or the claim directory was removed.
        """
        candidate = item.candidate
        if candidate.claimed:
            return item.in_destination or not self._is_followed_now(item)
        if self.closed and is_within(self._linker.directory_of(item), self.closed):
            self._events.still_failed()
            return False
        name = candidate.name
        if candidate.path in batch.claimed:
            # readdir(3) may return a name again that is made again during the scan. A rename would replace the claim
            # of the first file, which has no other name by now.
            return False
        try:
            claim = batch.directory(candidate.path.rpartition("/")[0], item.day)
        except FileNotFoundError as error:
            # No file of the spool is missing then, and nothing can be claimed until a restart.
            raise OSError(error.errno, "the claim directory was removed: restart the sidecar") from error
        except OSError as error:
            self._cannot_claim(candidate, error)
            return False
        try:
            os.rename(name, name, src_dir_fd=candidate.directory.fd, dst_dir_fd=claim.fd)
        except FileNotFoundError:
            return False  # its writer or another sidecar was first
        except OSError as error:
            self._cannot_claim(candidate, error)
            return False
        batch.claimed.add(candidate.path)
        item.claim = claim
        item.claim_path = batch.prefix(item.day) + candidate.path
        if claim.inode(name) != (item.info.st_dev, item.info.st_ino):
            # The writer reused the name since: this is a new file, which nothing has checked.
            item.put_back(self._claims.put_backs)
            return False
        return not self._is_followed_now(item)

    def _is_followed_now(self, item: Item) -> bool:
        """Put a claimed file back if another sidecar follows it since: moved as it is, its live copy would stay."""
        if not self._follower.is_new(item):
            return False
        item.put_back(self._claims.put_backs)
        return True

    def _cannot_claim(self, candidate: Candidate, error: OSError) -> None:
        if error.errno in FULL:
            raise error
        # A file on another mount fails by itself, and there may be many.
        by_itself = error.errno == errno.EXDEV or error.errno in OUT_OF_DESCRIPTORS
        failure = None if by_itself else self._claims.failure()
        if failure is not None:
            raise SpoolError(
                f"cannot move files within {self._spool.shown!r}: {describe(failure)}; nothing was lost"
            ) from failure
        self.fail(candidate, error)

    def fail(self, candidate: Candidate, error: OSError) -> None:
        """Report a file that cannot be claimed though others can."""
        hint = "give write permission on its directory"
        if error.errno == errno.EXDEV:
            hint = "it is on another mount than the spool's root: run a sidecar with --from there"
        elif error.errno in OUT_OF_DESCRIPTORS:
            self.exhausted, hint = True, RAISE_LIMIT
        self._events.failed(candidate.path, f"cannot claim it: {describe(error)}; {hint}")
