"""Whether a file may move: it is a regular file, it is finished, and nobody has it open for writing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from sharedvol.errors import describe
from sharedvol_sidecar.destination.ownership import Ownership, acl_lets_read
from sharedvol_sidecar.destination.template import day_of
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS, RAISE_LIMIT
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.fs.content import PACKED
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.inode import birth_ns
from sharedvol_sidecar.spool.quiet_time import QuietTime
from sharedvol_sidecar.spool.renames import WriterRenames
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.following import OpenLogFollower
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker

CONTAINERS = 10_000
"""Containers whose backlogs are counted one by one: whoever writes the spool decides how many there are."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNLEASED = (
    "no lease can be had (another user's files without CAP_LEASE, or a file system without leases): a file is taken "
    "for finished after the quiet time, which is weaker; run the sidecar as the writers' user, or add the capability "
    "LEASE"
)
_SOON = 0.1  # seconds until a file is tried again that is changed just when it is tried
_SECRETS = 10_000  # refused files that are remembered
_TYPE, _REGULAR = 0o170000, stat.S_IFREG


@dataclass(frozen=True, slots=True)
class Logs:
    """How the kinds are treated whose files grow while they are looked at.

    Attributes:
        kinds: their names.
        seal_after: where no lease can be had, seconds without a change after which one is finished.
        encoding: what they are compressed by when they are finished, or empty.
    """

    kinds: tuple[str, ...] = ()
    seal_after: float = 60.0
    encoding: str = ""

    def encoding_of(self, item: Item) -> str:
        """What the file is to be compressed by."""
        candidate = item.candidate
        if candidate.origin.kind not in self.kinds or candidate.name.endswith(PACKED) or item.hollow:
            return ""
        return self.encoding


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """How logs are treated, and whose the collected files will be."""

    logs: Logs
    ownership: Ownership


class Admission:
    """Opens what a scan finds, and takes its lease.

    Args:
        spool: the spool's root.
        quiet: when a file is finished.
        renames: which files their writers renamed into place after the last write.
        linker: hides the final name of a dead mover's claim that a writer has open.
        follower: follows logs that are not finished.
        events: counts and reports what is left.
        rules: how logs are treated, and whose the collected files will be.
    """

    def __init__(
        self,
        spool: Directory,
        quiet: QuietTime,
        renames: WriterRenames,
        linker: Linker,
        follower: OpenLogFollower,
        events: Events,
        rules: AdmissionRules,
    ) -> None:
        self._spool, self._quiet, self._renames, self._linker = spool, quiet, renames, linker
        self._follower, self._events = follower, events
        self._logs, self._ownership = rules.logs, rules.ownership
        self._secrets: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._may_leave_atime = True
        self.exhausted = False
        """Whether this pass met a file for which there was no descriptor: move what is open before the next."""
        self.due: float | None = None
        """Seconds until the first of the files that were left as `settling` may be finished."""
        self.backlog: dict[str, list[int]] = {}
        """Files that were left, by container: how many, and their bytes. Of too many containers, the rest as ``""``."""
        self.unopened: set[str] = set()
        """The directories at the top of the spool with a file that could not be opened, and so not be recognized."""

    def new_pass(self) -> None:
        """A pass begins."""
        self.due = None
        self.exhausted = False
        self.backlog = {}
        self.unopened = set()
        self._may_leave_atime = True

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count what is left as backlog: the scan counts it once."""
        backlog, self.backlog = self.backlog, {}
        try:
            yield
        finally:
            self.backlog = backlog

    def admit(self, candidate: Candidate, claim_path: str = "", day: int | None = None) -> Item | None:
        """Open a candidate and take its lease, if it is finished; else count why not.

        Args:
            candidate: a file in the spool, or a claim that was left behind.
            claim_path: of a claim, its path below the claim directories.
            day: of a claim, the one that is kept with it: the file's own time may have changed since.
        """
        try:
            fd = self._open(candidate)
        except OSError as error:
            self._cannot_open(candidate, error)
            return None
        item = None
        try:
            info = os.fstat(fd)
            item = self._admit(candidate, fd, info, day)
            if item is not None and item.leased and _version(now := os.fstat(fd)) != _version(info):
                # A writer came and went before the lease was held. Once more, and not for as long as that happens.
                lease.release(fd)
                info, item = now, self._admit(candidate, fd, now, day)
                if item is not None and _version(os.fstat(fd)) != _version(info):
                    self._settles(_SOON)
                    item = None
            if item is None:
                self._leave(candidate, info)
            if item is not None and candidate.claimed:
                item.claim_path = claim_path
                if self._was_put_back(item):
                    item = None
        except OSError as error:
            item = None
            self._cannot_open(candidate, error)
        finally:
            if item is None:
                os.close(fd)
        return item

    def _open(self, candidate: Candidate) -> int:
        """A descriptor of it. Its time of access is left alone where that is allowed, as it need not be written then.

        That is for the file's owner and CAP_FOWNER; else EPERM, open(2).
        """
        if self._may_leave_atime:
            try:
                return os.open(candidate.name, _OPEN | os.O_NOATIME, dir_fd=candidate.directory.fd)
            except PermissionError:
                self._may_leave_atime = False  # and no second try for every file of this pass
        return os.open(candidate.name, _OPEN, dir_fd=candidate.directory.fd)

    def _leave(self, candidate: Candidate, info: os.stat_result) -> None:
        container = candidate.origin.container
        if container not in self.backlog and len(self.backlog) >= CONTAINERS:
            container = ""
        left = self.backlog.setdefault(container, [0, 0])
        left[0] += 1
        left[1] += info.st_size

    def _admit(self, candidate: Candidate, fd: int, info: os.stat_result, day: int | None) -> Item | None:
        if info.st_mode & _TYPE != _REGULAR:
            self._events.refused(candidate.path, "no regular file")
            return None
        followed = self._follower.which(fd, info.st_ino)
        if not candidate.claimed and self._is_foreign(candidate, fd, info):
            return None  # before it is followed: that copies it as well
        if self._wait_for(candidate, info, leases=True):
            if followed or self._is_old(info):
                self._follow(candidate, fd, info)
            return None
        answer = lease.acquire(fd)
        item = Item(candidate, fd, info, answer is lease.Lease.HELD)
        item.followed, item.shared = followed, info.st_nlink > 1 and not candidate.claimed
        item.day = day_of(candidate.origin, info.st_mtime_ns) if day is None else day
        item.encoding = self._logs.encoding_of(item)
        if candidate.claimed:
            item.claim = candidate.directory
        return item if answer is lease.Lease.HELD or self._is_finished(item, answer) else None

    def _is_finished(self, item: Item, answer: lease.Lease) -> bool:
        """Return whether a file whose lease is not held may move all the same; otherwise count why not."""
        candidate, info = item.candidate, item.info
        if answer is lease.Lease.REFUSED:
            self._events.writing()
            if candidate.claimed and info.st_nlink > 1:
                self._linker.hide(item)
            else:
                self._follow(candidate, item.fd, info)
            return False
        if self._wait_for(candidate, info, leases=False):
            self._follow(candidate, item.fd, info)
            return False
        self._events.unleased(_UNLEASED)
        return True

    def _follow(self, candidate: Candidate, fd: int, info: os.stat_result) -> None:
        if not candidate.claimed and candidate.origin.kind in self._logs.kinds:
            self._follower.grows(candidate, fd, info)

    def _is_old(self, info: os.stat_result) -> bool:
        """Whether a log has been there for a while, and is changed again and again: a shell's ``>>``.

        One that was written at once, and is finished in a moment, need not be copied first.
        """
        return self._quiet.watched(info) > self._quiet.seconds

    def _is_foreign(self, candidate: Candidate, fd: int, info: os.stat_result) -> bool:
        """Whether a file may be the secret of another user than its directory's: link(2) needs no right to read.

        The kernel forbids such links by default (fs.protected_hardlinks, proc_sys_fs(5)), but not to its owner,
        not to root, and not everywhere. A link whose other name was removed has one name, like any file.
        """
        if info.st_mode & stat.S_IROTH or candidate.directory.is_of(info.st_uid):
            return False
        if info.st_nlink == 1 and not self._may_be_a_secret(candidate, fd, info):
            return False
        if self._settles(self._quiet.unchanged(info)):
            return True  # `publish` gives a file two names for a moment
        self._secrets[info.st_dev, info.st_ino] = birth_ns(fd)
        if len(self._secrets) > _SECRETS:
            self._secrets.popitem(last=False)
        detail = f"a hard link to a file of user {info.st_uid} that not everybody may read: put a copy there"
        self._events.refused(candidate.path, detail)
        return True

    def _may_be_a_secret(self, candidate: Candidate, fd: int, info: os.stat_result) -> bool:
        """Whether a file with one name, which its owner alone may read, is one that another user may have linked here.

        It had another name before; or settings would open it to others, and it is in the directory of a user who
        neither owns it nor is trusted.
        """
        if self._secrets and self._secrets.get((info.st_dev, info.st_ino)) == birth_ns(fd):
            return True
        other = candidate.directory.owner
        if other in (info.st_uid, 0, os.geteuid()) or not self._ownership.widens_access(info):
            return False
        return not acl_lets_read(fd, other)

    def _wait_for(self, candidate: Candidate, info: os.stat_result, *, leases: bool) -> bool:
        """Whether the file is still to be left alone; then it is counted.

        Args:
            candidate: the file.
            info: its status.
            leases: whether a lease can be had, as far as is known.
        """
        seconds = None
        if not leases and candidate.origin.kind in self._logs.kinds:
            seconds = max(self._logs.seal_after, self._quiet.seconds)  # it may be open still, and just silent
        # A claim waits as well: a writer that had it open may have changed it after its mover died.
        left = self._quiet.remaining(info, trust_mark=leases, seconds=seconds)
        if (
            left > 0
            and leases
            and not candidate.claimed
            and self._renames.prove(candidate.directory, candidate.name, info)
        ):
            left = 0.0
        return self._settles(left)

    def _settles(self, left: float) -> bool:
        if left > 0:
            self._events.settling()
            self.due = left if self.due is None else min(self.due, left)
            return True
        return False

    def _cannot_open(self, candidate: Candidate, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return  # its writer or another sidecar took it
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link or a socket took its place
            self._events.refused(candidate.path, "no regular file")
            return
        self.unopened.add(candidate.path.partition("/")[0])
        remedy = ""
        if error.errno in OUT_OF_DESCRIPTORS:
            self.exhausted, remedy = True, f"; {RAISE_LIMIT}"
        self._events.failed(candidate.path, f"cannot open it: {describe(error)}{remedy}")

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


def _version(info: os.stat_result) -> tuple[int, ...]:
    """All of a file's status that its admission depends on."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode, info.st_uid, info.st_gid, info.st_nlink
