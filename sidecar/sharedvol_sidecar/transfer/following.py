"""What the admission and the release of files need from the part that follows logs, which is on a higher floor."""

from __future__ import annotations

import os
from typing import Protocol

from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.item import Item


class OpenLogFollower(Protocol):
    """Follows logs that are not finished."""

    def which(self, fd: int, inode: int) -> str:
        """Return the id of a followed log, else an empty string."""

    def grows(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        """Follow a log that is not finished. The descriptor stays the caller's."""


class ClaimFollower(Protocol):
    """Knows the followed logs, by their claims."""

    def is_new(self, item: Item) -> bool:
        """Return whether another sidecar has begun to follow a file that is claimed now."""

    def unfollow(self, item: Item) -> None:
        """Remove the live copy of a log before its claim goes, or remember a log that may come back.

        Raises:
            OSError: the destination fails; the claim is to stay then.
        """
