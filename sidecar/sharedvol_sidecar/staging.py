"""Copies for a destination on another file system: there is no link across, so a copy stands for it.

A copy gets a name only when it is whole and on the disk: first in the staging directory, under a name
that is a function of the claim, then, by link, its final one. The staging name goes last, after the
claim. So after a crash it tells whether a final name was ours, by inode: two files of equal content stay
two files, and no copy is made twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable

from sharedvol_sidecar.contents import copy, copy_data, digest, same
from sharedvol_sidecar.directories import Directory, sync_filesystem
from sharedvol_sidecar.holes import data_bytes
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.liveness import Liveness, beating

_FEW = 8

Dress = Callable[[int, os.stat_result], None]
"""Gives a new file in the destination its owner and mode: those of its source, or the configured ones."""


def stage(
    items: Iterable[Item],
    staging: Directory,
    withdraw: Callable[[Item], None],
    dress: Dress,
    liveness: Liveness,
    floor: int = 0,
) -> list[Item]:
    """Copy the claimed files and give each its staging name. Returns the items that have one.

    An item whose writer came back while it was copied gets none.

    Args:
        items: claimed files.
        staging: the directory for the copies.
        withdraw: takes back the copy that a mover which died had made, and its final name, where the
            claim has changed since.
        dress: gives a copy its owner and mode.
        liveness: receives a sign of life for each file, and for each chunk of a long one.
        floor: bytes that are to stay free.

    Raises:
        OSError: the destination is full, or fails.
    """
    done: list[Item] = []
    copies: list[tuple[Item, int, str]] = []
    try:
        for item in items:
            liveness.beat()
            if item.candidate.claimed and already_staged(item, staging, withdraw, liveness):
                done.append(item)
                continue
            if not _has_room(item, staging, floor):
                continue  # one file that is too large must not stop the others
            part = f"{item.staging_name}.part"
            fd, named = _new_file(staging, part)
            copies.append((item, fd, part if named else ""))
            if not _copy(item, fd, dress, beating(liveness, item.going_on)):
                os.close(copies.pop()[1])
                if named:
                    os.unlink(part, dir_fd=staging.fd)
        _sync_claims(item for item, _, _ in copies)
        if len(copies) > _FEW:
            sync_filesystem(staging)
        for item, fd, part in copies:
            liveness.beat()
            if len(copies) <= _FEW:
                os.fsync(fd)
            _name(staging, fd, part, item.staging_name)
            item.staged = staging
            done.append(item)
    finally:
        for _, fd, _ in copies:
            os.close(fd)
    return done


def _sync_claims(items: Iterable[Item]) -> None:
    """The claims are on the disk before their copies can have names.

    The spool is another file system: a power cut could give a file its name in the spool back, and leave
    the copy with its own.
    """
    for directory in {id(item.claim): item.claim for item in items if item.claim and not item.in_destination}.values():
        directory.sync()


def _has_room(item: Item, staging: Directory, floor: int) -> bool:
    """Whether its data fits; if not, set the item's problem."""
    free = os.fstatvfs(staging.fd)
    available = free.f_bavail * free.f_frsize - floor
    if item.info.st_size <= available:
        return True
    needed = data_bytes(item.fd, item.info.st_size)  # a hole takes no space in the copy either
    if needed <= available:
        return True
    item.problem = f"cannot be copied: it has {needed} bytes, more than are free"
    item.no_room = True
    return False


def already_staged(item: Item, staging: Directory, withdraw: Callable[[Item], None], liveness: Liveness) -> bool:
    """Whether a mover that died had made the copy, and it is still what the claim holds; then it is the item's."""
    try:
        fd = os.open(item.staging_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
    except FileNotFoundError:
        return False
    try:
        going_on = beating(liveness, _always)
        if same(item.fd, fd, item.encoding, going_on):
            item.staged = staging
            item.sha256 = None if item.hollow else digest(fd, os.fstat(fd).st_size, going_on)
            return True
    finally:
        os.close(fd)
    item.staged = staging  # a late writer changed the claim after the copy
    withdraw(item)
    return False


def _always() -> bool:
    return True


def _new_file(staging: Directory, part: str) -> tuple[int, bool]:
    """A file without a name, which a crash cannot leave behind; where there are none, one with a name."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=staging.fd), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(part, flags, 0o600, dir_fd=staging.fd), True


def _copy(item: Item, fd: int, dress: Dress, going_on: Callable[[], bool]) -> bool:
    """The file's bytes, owner, mode and times. False if a writer waits for it meanwhile."""
    size = item.info.st_size
    # No further than it was long: without a lease a writer may go on as fast as we copy.
    if item.hollow:
        if not copy_data(item.fd, fd, size, going_on):
            return False
    else:
        item.sha256 = copy(item.fd, fd, size, item.encoding, going_on)
        if item.sha256 is None:
            return False
    dress(fd, item.info)
    os.utime(fd, ns=(item.info.st_atime_ns, item.info.st_mtime_ns))
    return os.fstat(item.fd).st_size == size


def _name(staging: Directory, fd: int, part: str, name: str) -> None:
    if part:
        os.rename(part, name, src_dir_fd=staging.fd, dst_dir_fd=staging.fd)
        return
    # AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; this way, from open(2), does not.
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=staging.fd, follow_symlinks=True)


def purge(staging: Directory) -> None:
    """Remove what is left in a mover's staging directory. Call it where the mover has no claims."""
    with os.scandir(staging.fd) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=staging.fd)
