"""Whether a file may move: it is a regular file, it is finished, and nobody has it open for writing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from sharedvol.errors import describe
from sharedvol_sidecar import lease
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.quiet import Quiet
from sharedvol_sidecar.report import Event, Listener, Tally
from sharedvol_sidecar.scan import Candidate

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPE, _REGULAR = 0o170000, stat.S_IFREG


class Admission:
    """Opens what a scan finds, and takes its lease.

    Args:
        spool: the spool's root.
        quiet: when a file is finished.
        hide: called with a claim of a dead mover that a writer has open, to take back its final name.
        tell: told of problems.
    """

    def __init__(self, spool: Directory, quiet: Quiet, hide: Callable[[Item], None], tell: Listener) -> None:
        self._spool, self._quiet, self._hide, self._tell = spool, quiet, hide, tell
        self.due: float | None = None
        """Seconds until the first of the files that were left as `settling` may be finished."""

    def admit(self, candidate: Candidate, tally: Tally, claim_path: str = "") -> Item | None:
        """Open a candidate and take its lease, if it is finished; else count why not.

        Args:
            candidate: a file in the spool, or a claim that was left behind.
            tally: counts it.
            claim_path: of a claim, its path below the claim directories.

        Raises:
            OSError: too many open files.
        """
        try:
            fd = os.open(candidate.name, _OPEN, dir_fd=candidate.directory.fd)
        except OSError as error:
            self._cannot_open(candidate, error, tally)
            return None
        item = None
        try:
            item = self._admit(candidate, fd, tally)
            if item is not None and candidate.claimed:
                item.claim_path = claim_path
                if self._was_put_back(item):
                    item = None
        finally:
            if item is None:
                os.close(fd)
        return item

    def _admit(self, candidate: Candidate, fd: int, tally: Tally) -> Item | None:
        info = os.fstat(fd)
        if info.st_mode & _TYPE != _REGULAR:
            tally.refused += 1
            self._tell(Event("refused", candidate.path, "no regular file"))
            return None
        if self._wait_for(candidate, info, tally, True):
            return None
        answer = lease.take(fd)
        item = Item(candidate, fd, info, answer is lease.Lease.HELD)
        if candidate.claimed:
            item.claim = candidate.directory
        if answer is lease.Lease.HELD:
            return item
        if answer is lease.Lease.REFUSED:
            tally.writing += 1
            if candidate.claimed and info.st_nlink > 1:
                self._hide(item)
            return None
        if self._wait_for(candidate, info, tally, False):
            return None
        self._tell(
            Event(
                "unleased",
                "",
                "no lease can be had (another user's files without CAP_LEASE, or a file system without "
                "leases): a file is taken for finished after the quiet time, which is weaker; run the "
                "sidecar as the writers' user, or add the capability LEASE",
            )
        )
        return item

    def _wait_for(self, candidate: Candidate, info: os.stat_result, tally: Tally, trust_rename: bool) -> bool:
        """Whether the file is still to be left alone; then it is counted."""
        if candidate.claimed:  # our own rename changed its change time
            left = self._quiet.unchanged(info, info.st_mtime_ns)
        else:
            left = self._quiet.remaining(info, trust_rename=trust_rename)
        if left > 0:
            tally.settling += 1
            self.due = left if self.due is None else min(self.due, left)
            return True
        return False

    def _cannot_open(self, candidate: Candidate, error: OSError, tally: Tally) -> None:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return  # its writer or another sidecar took it
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise error
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link or a socket took its place
            tally.refused += 1
            self._tell(Event("refused", candidate.path, "no regular file"))
            return
        tally.failed += 1
        self._tell(Event("failed", candidate.path, f"cannot open it: {describe(error)}"))

    def _was_put_back(self, item: Item) -> bool:
        """Whether a claim has its name in the spool again: its mover died between the two steps of that."""
        if item.info.st_nlink == 1:
            return False
        directory = self._spool
        *parents, name = item.candidate.path.split("/")
        try:
            for parent in parents:
                directory = directory.open(parent)
        except OSError:
            return False
        if directory.inode(name) != (item.info.st_dev, item.info.st_ino):
            return False
        os.unlink(item.candidate.name, dir_fd=item.candidate.directory.fd)
        return True
