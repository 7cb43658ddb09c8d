"""Move files into the destination so that no kill, no crash and no writer can lose or double one.

The steps of a batch, each there because data is lost, doubled or seen half-written without it:

1. lease: nobody has the file open for writing, and who opens it from here on waits for us
2. sync: the contents are on the disk before any new name is (one syncfs(2) for the batch)
3. claim: rename into our claim directory, and look whether it is the file that was leased
4. link to the final name: fails where the name is taken, and then another name is used
5. sync the destination's directories
6. ask the lease again: a writer that had resolved the path before the claim gets the same inode; it
   waits until the lease is given back, so the name can still be withdrawn before it writes a byte
7. unlink the claim, sync its directory

At every point the file has a name in the spool, in a claim directory or in the destination, and whoever
finds a claim of a dead mover can tell by inode how far it got.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

from sharedvol.errors import describe
from sharedvol_sidecar import lease
from sharedvol_sidecar.claims import Batch, Claims
from sharedvol_sidecar.destination import Destination
from sharedvol_sidecar.directories import Directory, sync_filesystem
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.quiet import Quiet
from sharedvol_sidecar.report import Event, Listener, Tally
from sharedvol_sidecar.scan import Candidate
from sharedvol_sidecar.staging import already_staged, stage
from sharedvol_sidecar.template import Template, alternatives, fit

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# What is wrong with this one file or its name, as against what is wrong with the whole destination.
_OF_THE_FILE = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL}
)
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})
_FEW = 8


class Mover:
    """Moves what a scan finds.

    Args:
        spool: the spool's root.
        destination: where files go.
        claims: the claim directories.
        template: their names there.
        quiet: when a file is finished.
        staging: gives the directory for the copies of a slot's claims.
        linked: whether spool and destination are one file system, so that copies are the exception.
        tell: told of problems.
        tell_collected: tell of every collected file too.
    """

    def __init__(
        self,
        spool: Directory,
        destination: Destination,
        claims: Claims,
        template: Template,
        quiet: Quiet,
        staging: Callable[[str], Directory],
        linked: bool,
        tell: Listener,
        tell_collected: bool = False,
    ) -> None:
        self._spool, self._destination, self._claims = spool, destination, claims
        self._template, self._quiet, self._staging, self._linked = template, quiet, staging, linked
        self._tell, self._tell_collected = tell, tell_collected
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
                item.claim, item.claim_path = candidate.directory, claim_path
                if self._was_put_back(item):
                    item = None
        finally:
            if item is None:
                os.close(fd)
        return item

    def _admit(self, candidate: Candidate, fd: int, tally: Tally) -> Item | None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            tally.refused += 1
            self._tell(Event("refused", candidate.path, "no regular file"))
            return None
        if self._wait_for(candidate, info, tally, trust_rename=True):
            return None
        answer = lease.take(fd)
        if answer is lease.Lease.REFUSED:
            tally.writing += 1
            if candidate.claimed:
                self._hide(candidate, fd, info)
            return None
        if answer is lease.Lease.UNAVAILABLE:
            if self._wait_for(candidate, info, tally, trust_rename=False):
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
        return Item(candidate, fd, info, answer is lease.Lease.HELD)

    def _wait_for(self, candidate: Candidate, info: os.stat_result, tally: Tally, *, trust_rename: bool) -> bool:
        """Whether the file is still to be left alone; then it is counted."""
        if candidate.claimed:  # our own rename changed its change time
            left = self._quiet.unchanged(info, info.st_mtime_ns)
        else:
            left = self._quiet.remaining(info, trust_rename=trust_rename)
        if left > 0:
            tally.settling += 1
            self.due = left if self.due is None else min(self.due, left)
        return left > 0

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

    def move(self, items: Sequence[Item], tally: Tally) -> None:
        """Move a batch.

        Raises:
            DestinationError: the destination takes nothing now. Every file has its name in the spool, or
                is a claim that the next pass finds.
        """
        batch = self._claims.new_batch()
        try:
            if self._linked:
                self._sync_contents(items)
            claimed = [item for item in items if self._claim(item, batch, tally)]
            self._destination.begin()
            placed = self._place(claimed, tally)
            # One by one: a writer that comes between the question and the end of the lease is not seen.
            self._let_go(item for item in placed if self._confirm(item, tally))
        finally:
            for item in items:
                item.close()
            batch.remove()

    def _sync_contents(self, items: Sequence[Item]) -> None:
        if len(items) > _FEW:
            sync_filesystem(self._spool)
            return
        for item in items:
            os.fsync(item.fd)

    def _claim(self, item: Item, batch: Batch, tally: Tally) -> bool:
        candidate = item.candidate
        if candidate.claimed:
            return True
        name = candidate.name
        try:
            claim = batch.directory(candidate.path.rpartition("/")[0])
        except FileNotFoundError as error:
            # No file of the spool is missing then, and nothing could be claimed ever again.
            raise OSError(error.errno, "the claim directory was removed: restart the sidecar") from error
        except OSError as error:
            self._cannot_claim(candidate, error, tally)
            return False
        try:
            os.rename(name, name, src_dir_fd=candidate.directory.fd, dst_dir_fd=claim.fd)
        except FileNotFoundError:
            return False  # its writer or another sidecar was first
        except OSError as error:
            self._cannot_claim(candidate, error, tally)
            return False
        item.claim = claim
        item.claim_path = f"{self._claims.slot}/{batch.name}/{candidate.path}"
        if claim.inode(name) != (item.info.st_dev, item.info.st_ino):
            # The writer reused the name since: this is a new file, about which nothing was asked.
            item.put_back()
            return False
        return True

    def _cannot_claim(self, candidate: Candidate, error: OSError, tally: Tally) -> None:
        tally.failed += 1
        hint = (
            "it is on another mount than the spool's root: run a sidecar with --from there"
            if error.errno == errno.EXDEV
            else "give write permission on its directory"
        )
        self._tell(Event("failed", candidate.path, f"cannot claim it: {describe(error)}; {hint}"))

    def _place(self, items: list[Item], tally: Tally) -> list[Item]:
        """Give the claimed files their final names, durably. What cannot have one goes back."""
        placed, failed = [], []
        try:
            for item in self._stage(items):
                try:
                    self._publish(item)
                except BlockingIOError:
                    continue  # its writer came back while it was copied
                except OSError as error:
                    if error.errno not in _OF_THE_FILE:
                        raise
                    failed.append(item)
                    tally.failed += 1
                    self._tell(Event("failed", item.candidate.path, f"cannot be named: {describe(error)}"))
                else:
                    placed.append(item)
            self._destination.sync()
        except OSError as error:
            for item in items:
                self._give_back(item)
            raise DestinationError(
                f"cannot write to {self._destination.root.shown!r}: {describe(error)}; "
                "nothing was lost, the files wait in the spool"
            ) from error
        for item in items:
            if item.published is None:
                self._give_back(item)
                if item not in failed:
                    self._count_put_back(item, tally)
        return placed

    def _stage(self, items: list[Item]) -> list[Item]:
        """What can be published: all, or of those that must be copied the ones that were."""
        claimed = next((item for item in items if item.candidate.claimed), None)
        if not items or (self._linked and claimed is None):
            return items
        staging = self._staging(items[0].slot)  # one slot: a batch is our own, or of one claim directory
        if not self._linked:
            return stage(items, staging, self._withdraw_known)
        for item in items:
            # A file that could not be linked may have been copied, and the copy have its final name already.
            already_staged(item, staging, self._withdraw_known)
        return items

    def _publish(self, item: Item) -> None:
        target = self._template.target(item.candidate.origin, item.written)
        directory, name = self._destination.locate(target)
        if item.candidate.claimed:
            known = self._published_before(item, directory, name)
            if known is not None:
                item.published = directory, known
                return
        for number, final in enumerate(_names(name, item)):
            try:
                self._link(item, directory, final)
            except FileExistsError:
                continue
            item.published = directory, final
            item.kept_both = number > 0
            return

    def _link(self, item: Item, directory: Directory, final: str) -> None:
        place, name = item.source
        try:
            os.link(name, final, src_dir_fd=place.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EEXIST and directory.inode(final) == place.inode(name):
                return  # linked by an earlier run, or the same file under two names in the spool
            if error.errno not in _NO_LINK or item.staged is not None:
                raise
            # A mount below the spool's root, a file of another user (fs.protected_hardlinks,
            # proc_sys_fs(5)), or one with too many links: copy this one.
            if not stage([item], self._staging(item.slot), self._withdraw_known):
                raise OSError(errno.EAGAIN, "its writer came back") from error
            self._link(item, directory, final)

    def _published_before(self, item: Item, directory: Directory, name: str) -> str | None:
        """The final name that a mover which died had given a claim, found by inode."""
        place, source = item.source
        ours = place.inode(source)
        for final in (name, *alternatives(name, item.written)):
            if directory.inode(final) == ours:
                return final
        if os.stat(source, dir_fd=place.fd, follow_symlinks=False).st_nlink == 1:
            return None
        # Its time, and so its alternative name, may have changed since: a late writer was let in when
        # the mover died. Rare, so a look at the whole directory is cheap enough.
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if ours is not None and entry.inode() == ours[1] and directory.inode(entry.name) == ours:
                    return entry.name
        return None

    def _confirm(self, item: Item, tally: Tally) -> bool:
        """Ask again whether a writer came back; if not, count the file as collected."""
        if not (lease.intact(item.fd) if item.leased else item.unchanged()):
            self._give_back(item)
            self._count_put_back(item, tally)
            return False
        tally.collected += 1
        tally.bytes += item.info.st_size
        tally.kept_both += item.kept_both
        tally.copied += item.staged is not None
        tally.recovered += item.candidate.claimed
        tally.unleased += not item.leased
        if self._tell_collected and item.published is not None:
            directory, name = item.published
            self._tell(Event("collected", item.candidate.path, f"{directory.shown}/{name}"))
        return True

    def _count_put_back(self, item: Item, tally: Tally) -> None:
        tally.put_back += 1
        self._tell(Event("put_back", item.candidate.path, "a writer opened it again while it was moved"))

    def _let_go(self, confirmed: Iterable[Item]) -> None:
        done = []
        for item in confirmed:
            assert item.claim is not None
            done.append(item)
            # Gone already only where the same file was claimed under another name.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(item.candidate.name, dir_fd=item.claim.fd)
            item.close()
        for directory in {id(item.claim): item.claim for item in done if item.claim is not None}.values():
            directory.sync()
        # The copies' names last, when their claims cannot come back: they tell that a final name is ours.
        for item in done:
            if item.staged is not None:
                os.unlink(item.staging_name, dir_fd=item.staged.fd)

    def _give_back(self, item: Item) -> None:
        try:
            item.withdraw_from_destination()
        except OSError:
            # Back in the spool it would be a new file, and be collected a second time beside that name.
            return
        item.put_back()

    def _hide(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        """A claim that a late writer got hold of when its mover died: its final name must not show it growing."""
        if info.st_nlink == 1:
            return
        item = Item(candidate, fd, info, leased=False, claim=candidate.directory)
        with contextlib.suppress(OSError):
            self._destination.begin()
            self._withdraw_known(item)

    def _withdraw_known(self, item: Item) -> None:
        """Take back what a mover that died had published of a claim that has changed since."""
        target = self._template.target(item.candidate.origin, item.written)
        directory, name = self._destination.locate(target)
        known = self._published_before(item, directory, name)
        if known is not None:
            item.published = directory, known
        item.withdraw_from_destination()

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


def _names(name: str, item: Item) -> Iterator[str]:
    """The names to try, without end: its own, those that are a function of the file, then numbered ones."""
    yield name
    others = alternatives(name, item.written)
    yield from others
    for number in itertools.count(2):
        yield fit(others[-1], f"-{number}")
