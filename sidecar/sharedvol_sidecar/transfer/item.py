"""One file on its way, and the steps that undo a part of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field

from sharedvol_sidecar.destination.template import Template
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.fs.directory import Directory, move_name
from sharedvol_sidecar.fs.holes import is_hollow
from sharedvol_sidecar.spool.put_backs import PutBacks
from sharedvol_sidecar.spool.scanner import Candidate


@dataclass(slots=True, eq=False)
class Item:
    """A file that may move.

    Attributes:
        candidate: where it was found.
        fd: open for reading; the lease hangs on it.
        info: its status when it was opened.
        leased: whether its lease is held; else nobody can be asked whether it is being written.
        claim: the claim directory it is in, once it is.
        claim_path: the claim's path below the claim directories: its name, and unlike an inode never reused.
        staged: the staging directory, once the copy is there.
        published: the directory and name it has in the destination, once it does.
        kept_both: whether it got another name because its own was taken.
        problem: why it cannot be copied or named, though others can.
        day: the day in its final name, as `datetime.date.toordinal` counts; once it is claimed, the claim's.
        target: its final name relative to the destination, once it has one.
        sha256: of what is stored, in hexadecimal; None where digests are off.
        encoding: what it is compressed by, empty if it is not.
        followed: the id of the log that it is, if it was followed while it was open.
        ended: of a live copy whose log may come back, the log's id.
        shared: it has other names: it is copied, so that nobody changes it by one of those.
        in_destination: it is a followed log's live file, and lies in the destination already.
        done: it is where it belongs, and its claim is gone.
        template: what names it, where that is not this sidecar's own template: it was claimed under other settings.
        final: of a live copy, its final name relative to the destination, which no template can change.
        no_room: its problem is that the destination has too little space.
        denied: its problem is that this directory of the destination may not be written; empty if it is not.
        fits: whether it is as the collected files are promised to be; None until that is checked.
        hollow: it is long and almost only a hole: it is neither compressed nor read for a digest.
    """

    candidate: Candidate
    fd: int
    info: os.stat_result
    leased: bool
    claim: Directory | None = None
    claim_path: str = ""
    staged: Directory | None = None
    published: tuple[Directory, str] | None = None
    kept_both: bool = False
    problem: str = ""
    day: int = 0
    target: str = ""
    sha256: str | None = None
    encoding: str = ""
    followed: str = ""
    ended: str = ""
    shared: bool = False
    in_destination: bool = False
    done: bool = False
    template: Template | None = None
    final: str = ""
    no_room: bool = False
    denied: str = ""
    fits: bool | None = None
    hollow: bool = field(init=False)

    def __post_init__(self) -> None:
        self.hollow = is_hollow(self.fd, self.info)

    @property
    def work(self) -> int:
        """The bytes that are read to move it."""
        return min(self.info.st_size, self.info.st_blocks * 512) if self.hollow else self.info.st_size

    @property
    def slot(self) -> str:
        """The slot of the mover that claimed it, which may be a dead one's."""
        return self.claim_path.partition("/")[0]

    @property
    def staging_name(self) -> str:
        """The name of its copy, if one is made: a function of the claim."""
        return staging_name(self.claim_path)

    @property
    def source(self) -> tuple[Directory, str]:
        """What is linked to the final name: the claim, or the copy of it."""
        if self.staged is not None:
            return self.staged, self.staging_name
        assert self.claim is not None
        return self.claim, self.candidate.name

    def close(self) -> None:
        """Close the file, which gives the lease back: a writer that waits goes on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def going_on(self) -> bool:
        """Whether no writer waits for it, as far as that can be asked."""
        return lease.is_intact(self.fd) if self.leased else True

    def unchanged(self) -> bool:
        """Whether it has the size and time it had when it was opened."""
        now = os.fstat(self.fd)
        return (now.st_size, now.st_mtime_ns) == (self.info.st_size, self.info.st_mtime_ns)

    def withdraw_from_destination(self) -> None:
        """Take back the final name, and the copy. Only what is ours: by inode, never by name alone.

        Raises:
            OSError: a name could not be taken back; leave the claim, by which the next pass finds that name.
        """
        directory, name = self.source
        ours = directory.inode(name)
        if self.published is not None:
            place, final = self.published
            if ours is not None and place.inode(final) == ours:
                os.unlink(final, dir_fd=place.fd)
            self.published = None
        if self.staged is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.staging_name, dir_fd=self.staged.fd)
            self.staged = None

    def put_back(self, marks: PutBacks) -> bool:
        """Give a claimed file its name in the spool again. If that name is taken, the file stays claimed.

        The next pass finds a claim that stays.

        Args:
            marks: gets a mark of the file first, because the rename is not the writer's.
        """
        home, name = self.candidate.directory, self.candidate.name
        if self.claim is None or self.candidate.claimed:
            return False
        try:
            found = self.claim.inode(name)  # it may be another file than the one that was opened
            if found is not None:
                marks.add(found[1])
            move_name(name, self.claim, home)
        except OSError:
            return False
        return True


def staging_name(claim_path: str) -> str:
    """The name in a staging directory of the copy of a claim."""
    return hashlib.blake2b(os.fsencode(claim_path), digest_size=16).hexdigest()
