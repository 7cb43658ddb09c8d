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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sharedvol.errors import describe
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.fs.content import clone, copy, copy_data, digest, same
from sharedvol_sidecar.fs.directory import Directory, sync_filesystem
from sharedvol_sidecar.fs.holes import data_bytes
from sharedvol_sidecar.monitor.liveness import Liveness, beating
from sharedvol_sidecar.transfer.item import Item

_FEW = 8
_WORTH_CLONING = 1024 * 1024  # bytes: to share the blocks of less costs more than to copy them


def stage(
    items: Iterable[Item],
    staging: Directory,
    withdraw: Callable[[Item], None],
    destination: Destination,
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
        destination: gives a copy its owner and mode, and decides whose fault an error is.
        liveness: receives a sign of life for each file, and for each chunk of a long one.
        floor: bytes that are to stay free.

    Raises:
        OSError: the destination takes no file now.
    """
    done: list[Item] = []
    copies: list[_Copy] = []
    try:
        for item in items:
            liveness.beat()
            with _of_one_file(item, destination):
                if item.candidate.claimed and already_staged(item, staging, withdraw, destination, liveness):
                    done.append(item)
                elif _has_room(item, staging, floor):  # one file that is too large must not stop the others
                    with _new_copy(item, staging, copies) as made:
                        made.whole = _fill(item, made.fd, destination, beating(liveness, item.going_on))
        _sync_claims(made.item for made in copies)
        synced = len(copies) > _FEW and _is_synced(staging)
        for made in copies:
            liveness.beat()
            with _of_one_file(made.item, destination):
                if not synced:
                    os.fsync(made.fd)
                _name(staging, made)
                made.item.staged = staging
                done.append(made.item)
    finally:
        for made in copies:
            os.close(made.fd)
    return done


@dataclass(slots=True)
class _Copy:
    """A copy that has no staging name yet.

    Attributes:
        item: what it is a copy of.
        fd: open for writing.
        part: its temporary name, empty if it has none.
        whole: it holds all that the file does.
    """

    item: Item
    fd: int
    part: str
    whole: bool = False


@contextlib.contextmanager
def _of_one_file(item: Item, destination: Destination) -> Iterator[None]:
    """An error that concerns the file alone becomes its problem, and the others are copied."""
    try:
        yield
    except OSError as error:
        destination.blame(error)
        item.problem = item.problem or f"cannot be copied: {describe(error)}"
        item.no_room = item.no_room or error.errno in FULL


@contextlib.contextmanager
def _new_copy(item: Item, staging: Directory, copies: list[_Copy]) -> Iterator[_Copy]:
    """A new copy, which stays among the ``copies`` if it becomes whole, and is removed if not."""
    part = f"{item.staging_name}.part"
    fd, named = _new_file(staging, part)
    made = _Copy(item, fd, part if named else "")
    copies.append(made)
    try:
        yield made
    finally:
        if not made.whole:
            copies.remove(made)
            os.close(fd)
            if named:
                os.unlink(part, dir_fd=staging.fd)


def _is_synced(staging: Directory) -> bool:
    """Whether one call made all copies durable; if it fails, each is synced by itself to find out which one is bad."""
    try:
        sync_filesystem(staging)
    except OSError:
        return False
    return True


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


def already_staged(
    item: Item, staging: Directory, withdraw: Callable[[Item], None], destination: Destination, liveness: Liveness
) -> bool:
    """Whether a mover that died had made the copy, and it is still what the claim holds; then it is the item's."""
    try:
        fd = os.open(item.staging_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
    except FileNotFoundError:
        return False
    try:
        going_on = beating(liveness, _always)
        if same(item.fd, fd, item.encoding, going_on):
            destination.ownership.apply(fd, item.info)  # other settings may hold now than when it was made
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


def _fill(item: Item, fd: int, destination: Destination, going_on: Callable[[], bool]) -> bool:
    """The file's bytes, owner, mode and times. False if a writer waits for it meanwhile."""
    size = item.info.st_size
    # No further than it was long: without a lease a writer may go on as fast as we copy.
    if not item.encoding and size >= _WORTH_CLONING and clone(item.fd, fd, size):
        item.sha256 = None if item.hollow else digest(fd, size, going_on)
        if item.sha256 is None and not (item.hollow and going_on()):
            return False
    elif item.hollow:
        if not copy_data(item.fd, fd, size, going_on):
            return False
    else:
        item.sha256 = copy(item.fd, fd, size, item.encoding, going_on)
        if item.sha256 is None:
            return False
    destination.ownership.apply(fd, item.info)
    os.utime(fd, ns=(item.info.st_atime_ns, item.info.st_mtime_ns))
    return os.fstat(item.fd).st_size == size


def _name(staging: Directory, made: _Copy) -> None:
    name = made.item.staging_name
    if made.part:
        os.rename(made.part, name, src_dir_fd=staging.fd, dst_dir_fd=staging.fd)
        return
    # AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; this way, from open(2), does not.
    os.link(f"/proc/self/fd/{made.fd}", name, dst_dir_fd=staging.fd, follow_symlinks=True)


def purge(staging: Directory) -> None:
    """Remove what is left in a mover's staging directory. Call it where the mover has no claims."""
    with os.scandir(staging.fd) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=staging.fd)
