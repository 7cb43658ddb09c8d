"""Move files into the destination so that no kill, no crash and no writer can lose or double one.

The steps of a batch, each there because data is lost, doubled or seen half-written without it:

1. lease: nobody has the file open for writing, and who opens it from here on waits for us
2. sync: the contents are on the disk before any new name is (one syncfs(2) for the batch)
3. claim: rename into our claim directory, and look whether it is the file that was leased
4. link to the final name: fails where the name is taken, and then another name is used
5. sync the destination's directories
6. commit the catalog's rows: while there is a claim, whoever recovers it writes the same row again
7. ask the lease again: a writer that had resolved the path before the claim gets the same inode; it
   waits until the lease is given back, so the name can still be withdrawn before it writes a byte
8. unlink the claim, sync its directory

At every point the file has a name in the spool, in a claim directory or in the destination, and whoever
finds a claim of a dead mover can tell by inode how far it got. A catalog that cannot be written stops no
file: it has its final name, and the claim stays until the row is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence

from sharedvol.errors import describe
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.errors import DENIED, FULL, OUT_OF_DESCRIPTORS, RAISE_LIMIT, DestinationError, SpoolError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.fs.content import SYNC_EVERY, digest
from sharedvol_sidecar.fs.directory import Directory, sync_filesystem, sync_range
from sharedvol_sidecar.monitor.liveness import Liveness, Unwatched, beating
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claims import Batch, Claims
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.retries import Retries

_FEW = 8
_OPENED = "a writer opened it again while it was moved"


class Mover:
    """Moves what was admitted.

    Args:
        spool: the spool's root.
        destination: where files go.
        claims: the claim directories.
        publisher: gives the final names.
        register: keeps the catalog.
        linked: whether spool and destination are one file system, so that copies are the exception.
        events: counts and reports what happens to the files.
        digests: whether to take the digest of every file, which reads it whole.
        unfollow: called with a followed log before its claim goes, to remove its live file; and with a live file whose
            log may come back, to remember that.
        liveness: receives a sign of life for each file, and for each chunk of a long one.
        is_followed: whether another sidecar has begun to follow a file, asked once it is claimed.
    """

    def __init__(
        self,
        spool: Directory,
        destination: Destination,
        claims: Claims,
        publisher: Linker,
        register: CatalogWriter,
        linked: bool,
        events: Events,
        digests: bool = True,
        unfollow: Callable[[Item], None] = lambda item: None,
        liveness: Liveness | None = None,
        is_followed: Callable[[Item], bool] = lambda item: False,
    ) -> None:
        self._spool, self._destination, self._claims = spool, destination, claims
        self._publisher, self._register, self._linked = publisher, register, linked
        self._events = events
        self._digests, self._unfollow, self._is_followed = digests, unfollow, is_followed
        self._liveness = liveness or Unwatched()
        self._closed: set[str] = set()
        self._denied: set[str] = set()
        self._retries = Retries()
        self.without_room = False
        """Whether this pass met a file for whose claim the spool had no room."""
        self.exhausted = False
        """Whether this pass met a file for whose directories there were no descriptors."""

    def new_pass(self) -> None:
        """A pass begins: directories that took no name in the last one are tried again."""
        self._closed.clear()
        self._denied.clear()
        self.exhausted = self.without_room = False

    def move(self, items: Sequence[Item]) -> None:
        """Move a batch.

        Raises:
            DestinationError: the destination takes nothing now. Every file has its name in the spool, or
                is a claim that the next pass finds.
            SpoolError: nothing can be claimed in the spool now.
        """
        try:
            due = [item for item in items if self._is_due(item)]
            self._sync_contents([item for item in due if not self._publisher.is_copied(item)])
            read = [item for item in due if self._read(item)]
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
                    if self._claim(item, batch) and not self._leave_to_follower(item):
                        claimed.append(item)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    left.append((item, error.with_traceback(None)))
            self._destination.begin()
            placed = self._place(claimed)
            if self._register.add(placed):
                # One by one: a writer that comes between the check and the end of the lease is not seen.
                self._release(item for item in placed if self._confirm(item))
            else:
                self._keep_claims(placed)
            if any(item.done for item in claimed):
                return [item for item, _ in left]
            if left and self._claims.failure() is not None:
                self.without_room = True
                return []
            for item, failed in left:  # the spool has room: it is about this file
                self._cannot_claim_one(item.candidate, failed)
            return []
        finally:
            batch.remove()

    def _is_due(self, item: Item) -> bool:
        """Whether it is to be tried now: a file that failed again and again is not tried in each pass."""
        failure = self._retries.waiting(item.info)
        if failure is None:
            return True
        self._events.still_failed()
        if failure.no_room:
            self._events.no_room()
        self._count_denied(failure.denied)
        return False

    def _fail(self, item: Item, why: str) -> None:
        """Count and report a file that cannot be moved."""
        if item.no_room:
            self._events.no_room()
        self._retries.failed(item.info, item.no_room, item.denied)
        self._count_denied(item.denied)
        self._events.failed(item.candidate.path, why)

    def _count_denied(self, directory: str) -> None:
        """Count a directory of the destination that may not be written, once in a pass."""
        if directory and directory not in self._denied:
            self._denied.add(directory)
            self._events.denied()

    def _sync_contents(self, items: Sequence[Item]) -> None:
        """Make the contents durable. A file of which that fails gets a problem."""
        synced = False
        if len(items) > _FEW and not any(item.work > SYNC_EVERY for item in items):
            with contextlib.suppress(OSError):  # then each by itself, to find out which one is bad
                sync_filesystem(self._spool)
                synced = True
        for item in items if not synced else ():
            try:
                self._sync_content(item)
            except OSError as error:
                item.problem = f"cannot be written to the disk: {describe(error)}; it stays"

    def _sync_content(self, item: Item) -> None:
        # In slices: one sync of a long file would take minutes.
        for offset in range(0, item.work - SYNC_EVERY, SYNC_EVERY):
            self._liveness.beat()
            sync_range(item.fd, offset, SYNC_EVERY)
        self._liveness.beat()
        os.fsync(item.fd)

    def _read(self, item: Item) -> bool:
        """Take the digest of a file that will be linked; the others' are taken when they are copied."""
        self._liveness.beat()
        if item.problem:
            self._fail(item, item.problem)
            return False
        if not self._digests or self._publisher.is_copied(item) or item.hollow:
            return True
        try:
            item.sha256 = digest(item.fd, item.info.st_size, beating(self._liveness, item.going_on))
        except OSError as error:
            self._fail(item, f"cannot read it: {describe(error)}; it stays")
            return False
        if item.sha256 is not None or item.candidate.claimed:
            return True  # one that may have its final name already has to be hidden from its writer first
        self._events.put_back(item.candidate.path, _OPENED)
        return False

    def _claim(self, item: Item, batch: Batch) -> bool:
        candidate = item.candidate
        if candidate.claimed:
            return True
        if self._closed and self._is_closed(item):
            self._events.still_failed()
            return False
        name = candidate.name
        if candidate.path in batch.claimed:
            # readdir(3) may give a name again that is made anew during the scan, and a rename would replace
            # the claim of the first file, which has no other name by now.
            return False
        try:
            claim = batch.directory(candidate.path.rpartition("/")[0], item.day)
        except FileNotFoundError as error:
            # No file of the spool is missing then, and nothing could be claimed ever again.
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
            # The writer reused the name since: this is a new file, about which nothing was asked.
            item.put_back(self._claims.put_backs)
            return False
        return True

    def _leave_to_follower(self, item: Item) -> bool:
        """Put a claimed file back if another sidecar follows it since: moved as it is, its live copy would stay."""
        if item.in_destination or not self._is_followed(item):
            return False
        item.put_back(self._claims.put_backs)
        return True

    def _is_closed(self, item: Item) -> bool:
        return _is_within(self._publisher.directory_of(item), self._closed)

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
        self._cannot_claim_one(candidate, error)

    def _cannot_claim_one(self, candidate: Candidate, error: OSError) -> None:
        hint = "give write permission on its directory"
        if error.errno == errno.EXDEV:
            hint = "it is on another mount than the spool's root: run a sidecar with --from there"
        elif error.errno in OUT_OF_DESCRIPTORS:
            self.exhausted, hint = True, RAISE_LIMIT
        self._events.failed(candidate.path, f"cannot claim it: {describe(error)}; {hint}")

    def _place(self, items: list[Item]) -> list[Item]:
        """Give the claimed files their final names, durably. What cannot have one goes back."""
        placed = []
        try:
            for item in self._publisher.stage(items):
                self._liveness.beat()
                try:
                    self._publisher.publish(item)
                except BlockingIOError:
                    continue  # its writer came back while it was copied
                except OSError as error:
                    self._cannot_publish(item, error)
                else:
                    placed.append(item)
            placed = self._sync_names(placed)
        except OSError as error:
            for item in items:
                self._give_back(item)
            raise DestinationError(
                f"cannot write to {self._destination.root.shown!r}: {describe(error)}; "
                "nothing was lost, the files wait in the spool"
            ) from error
        for item in items:
            if item.published is None or item.problem:
                self._give_back(item)
                if item.problem:
                    self._fail(item, item.problem)
                else:
                    self._events.put_back(item.candidate.path, _OPENED)
        return placed

    def _cannot_publish(self, item: Item, error: OSError) -> None:
        """Give the item the problem that it has, or that one directory of the destination has.

        Raises:
            OSError: it is neither: the destination takes no file now.
        """
        if error.errno in OUT_OF_DESCRIPTORS:
            self.exhausted = True
            item.problem = f"cannot be named: {describe(error)}; {RAISE_LIMIT}"
            return
        self._destination.blame(error)
        directory = self._publisher.directory_of(item)
        # A file that may not be linked is copied, and a copy is ours: what is denied is the directory.
        failure = error if error.errno in DENIED else self._destination.failure_in(directory)
        if failure is None:
            item.problem = item.problem or f"cannot be named: {describe(error)}"
            item.no_room = item.no_room or error.errno in FULL
            return
        self._closed.add(directory)
        item.problem = f"cannot be put into {self._destination.root.shown}/{directory}: {describe(failure)}"
        if failure.errno in DENIED:
            item.denied = directory or "."
            item.problem += f"; give user {os.geteuid()} write permission there"

    def _sync_names(self, placed: list[Item]) -> list[Item]:
        """Make the final names durable. The items whose names are; the others have a problem.

        Raises:
            OSError: the destination takes no file now.
        """
        failed = self._destination.sync()
        if not failed:
            return placed
        for error in failed.values():
            self._destination.blame(error)
        durable = []
        for item in placed:
            path = item.target.rpartition("/")[0]
            if _is_within(path, failed):
                error = next(error for above, error in failed.items() if _is_within(path, [above]))
                item.problem = f"its name cannot be written to the disk: {describe(error)}"
            else:
                durable.append(item)
        return durable

    def _confirm(self, item: Item) -> bool:
        """Ask again whether a writer came back. Return True if not: then its claim can be removed.

        A writer that opens the file after the last question is not seen. So nothing that takes time comes between it
        and the end of the lease: the live copy of a log is removed before it.
        """
        if not self._is_left_alone(item):
            return False
        return not (item.followed or item.ended) or (self._is_unfollowed(item) and self._is_left_alone(item))

    def _is_unfollowed(self, item: Item) -> bool:
        """Remove a log's live copy, or remember a log that has ended. False where that fails: the claim stays."""
        try:
            self._unfollow(item)
        except OSError as error:
            self._keep_claim(item, error)
            return False
        return True

    def _keep_claim(self, item: Item, error: OSError) -> None:
        """The next pass finds it."""
        self._destination.blame(error)
        self._events.failed(item.candidate.path, f"its claim stays: {describe(error)}")

    def _is_left_alone(self, item: Item) -> bool:
        why = _OPENED
        if lease.is_intact(item.fd) if item.leased else item.unchanged():
            if self._publisher.is_as_promised(item):
                return True
            why = "its owner changed its owner, mode or attributes while it was moved"
        self._register.remove(item.target)
        self._give_back(item)
        self._events.put_back(item.candidate.path, why)
        return False

    def _keep_claims(self, placed: list[Item]) -> None:
        """Without the catalog: the files have their names, and the next pass finds the claims."""
        for item in placed:
            if self._is_left_alone(item):
                self._events.uncatalogued()

    def _release(self, confirmed: Iterable[Item]) -> None:
        """Remove the claims of files that no writer opened. A file is collected as soon as its claim is removed."""
        done = []
        for item in confirmed:
            assert item.claim is not None
            self._liveness.beat()
            try:
                # Gone already only where the same file was claimed under another name.
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
        # The copies' names last, when their claims cannot come back: they tell that a final name is ours.
        for item in done:
            if item.staged is not None:
                os.unlink(item.staging_name, dir_fd=item.staged.fd)

    def _count(self, item: Item) -> None:
        """Count and report a collected file."""
        candidate = item.candidate
        recovered = candidate.claimed and not item.in_destination and not self._claims.is_own(item.claim_path)
        root = self._destination.root.shown
        self._events.collected(item, candidate.path, candidate.origin.container, root, recovered=recovered)

    def _give_back(self, item: Item) -> None:
        try:
            if item.in_destination:
                return  # a live file: it is where it is to be
            item.withdraw_from_destination()
        except OSError:
            # Back in the spool it would be a new file, and be collected a second time beside that name.
            return
        item.put_back(self._claims.put_backs)


def _is_within(path: str, directories: Iterable[str]) -> bool:
    """Whether a path is one of the directories, or below one."""
    return any(not above or path == above or path.startswith(f"{above}/") for above in directories)
