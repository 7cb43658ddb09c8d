"""Claims: a file that is being moved has been renamed into a directory of the mover that moves it.

The rename is the claim: of several movers exactly one succeeds, and a writer that reuses the name
makes a new file there, which nobody mistakes for the claimed one. The claim directory lies in the spool,
so that the rename stays within one mount::

    .sharedvol/movers/<slot>.lock           held by the mover with that slot as long as it lives
    .sharedvol/claims/<slot>/<batch>.<key>.<day>/<path in the spool>

The key names the settings that name the files, see `naming`. The day is the one in the file's final name. It is kept
there because the file's own time may change after the mover has died. By both, the mover that finishes the work finds
the name that was given.

A slot whose lock is free belongs to a mover that died (or to nobody): whoever takes the lock moves what
it had claimed. The kernel frees the lock at the moment of death, so no clock is asked.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterator
from datetime import date as Date

from sharedvol import FileLock, LockTimeout, worker_token
from sharedvol_sidecar.errors import SidecarError
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.inode import identity, inode_of
from sharedvol_sidecar.fs.private import open_private, private_lock
from sharedvol_sidecar.fs.probe import Probe, try_to_rename
from sharedvol_sidecar.fs.spares import SpareDirectories, is_spare
from sharedvol_sidecar.spool.put_backs import PutBacks

MAX_MOVERS = 256

_LAST_DAY = Date.max.toordinal()

_movers = itertools.count(1)  # of this process


class Claims:
    """The claim directories of one mover.

    Args:
        spool: the spool's root.
        key: names the settings that name the claimed files.

    Attributes:
        key: of the next batches.
        movers: the directory of the slots' locks.
        slot: this mover's.

    Raises:
        OSError: the directories cannot be made.
        SidecarError: every slot is taken.
    """

    def __init__(self, spool: Directory, key: str = "") -> None:
        self.key = key
        self._prefix = f"{worker_token()}-{next(_movers)}-"  # after a fault the same process is another mover
        self._batches = itertools.count(1)
        with contextlib.ExitStack() as parts:
            private = parts.enter_context(open_private(spool))
            self.movers = parts.enter_context(private.make("movers", 0o700)[0])
            self._root = parts.enter_context(private.make("claims", 0o700)[0])
            self.put_backs = PutBacks(private)
            """The marks of files that were put back."""
            parts.callback(self.put_backs.close)
            self.slot, lock = self._take_slot()
            parts.callback(lock.release)
            self._mine = parts.enter_context(self._root.make(self.slot, 0o700)[0])
            self._spares = SpareDirectories(self._mine)
            self._parts = parts.pop_all()
        name = f"test-{self.slot}"
        self._probe = Probe(lambda: try_to_rename(private, name))

    def failure(self) -> OSError | None:
        """Return what keeps every file of the spool from being claimed, or None if nothing does."""
        return self._probe.failure()

    def new_batch(self) -> Batch:
        """A claim directory for one batch; its name is never used again."""
        self._spares.fill()
        suffix = f".{self.key}" if self.key else ""
        return Batch(self._mine, self._spares, self.slot, f"{self._prefix}{next(self._batches)}{suffix}")

    def is_own(self, path: str) -> bool:
        """Return whether a claim was made by this mover, by its path below the claim directories."""
        return path.partition("/")[2].startswith(self._prefix)

    def left_behind(self) -> Generator[tuple[str, Directory], None, None]:
        """Each slot and claim directory that no living mover works on, locked while it is yielded.

        One's own are included: call it between batches. Close the generator.
        """
        for slot in sorted(_names(self._root)):
            if not slot.isdecimal():
                continue  # nothing of ours
            if slot == self.slot:
                yield slot, self._mine
                continue
            with contextlib.suppress(LockTimeout, FileNotFoundError, NotADirectoryError):
                directory = self._root.open(slot)
                if all(map(is_spare, _names(directory))):
                    continue
                with self.slot_lock(slot).acquire(timeout=0):
                    yield slot, directory

    def tidy(self, root: Directory) -> bool:
        """Remove the empty directories in a slot's claim directory. Return whether it holds no claim then.

        Args:
            root: as `left_behind` gives it.
        """
        if root is self._mine:
            _remove_empty(root, self._spares.remove)
        else:
            _remove_empty(root, lambda parent, name: os.rmdir(name, dir_fd=parent.fd))
        return all(map(is_spare, _names(root)))

    def other_slots(self) -> list[str]:
        """The slots that were ever taken, without one's own."""
        names = (name.removesuffix(".lock") for name in _names(self.movers) if name.endswith(".lock"))
        return sorted(slot for slot in names if slot.isdecimal() and slot != self.slot)

    def holds(self, id: str) -> bool:
        """Return whether a file is claimed, by a living mover or a dead one.

        Args:
            id: what `inodes.identity` gives for the file.
        """
        return _holds(self._root, id, inode_of(id))

    def close(self) -> None:
        """Release the slot and close the directories. Does nothing the second time."""
        self._parts.close()

    def _take_slot(self) -> tuple[str, FileLock]:
        for number in range(MAX_MOVERS):
            lock = self.slot_lock(str(number))
            with contextlib.suppress(LockTimeout):
                lock.acquire(timeout=0)
                return str(number), lock
        raise SidecarError(f"{MAX_MOVERS} sidecars work on this spool already: stop some")

    def slot_lock(self, slot: str) -> FileLock:
        """The lock that the mover with that slot holds."""
        return slot_lock(self.movers, slot)


def slot_lock(movers: Directory, slot: str) -> FileLock:
    """The lock that the mover with a slot holds. Keep ``movers`` open as long as the lock is used.

    Args:
        movers: the directory of these locks, `Claims.movers`.
        slot: which one.
    """
    # By the descriptor: a process that may write the spool's root could put another directory in the path.
    return private_lock(f"/proc/self/fd/{movers.fd}/{slot}.lock")


class Batch:
    """The claim directories of one batch, made when they are first needed: one for each day."""

    def __init__(self, mine: Directory, spares: SpareDirectories, slot: str, name: str) -> None:
        self._mine, self._spares, self.name, self._slot = mine, spares, name, slot
        self.claimed: set[str] = set()
        """The paths that were claimed: each once, as the second rename would replace the first claim."""
        self._directories: dict[tuple[str, int], Directory] = {}

    def prefix(self, day: int) -> str:
        """Where the claims of a day are, below the claim directories."""
        return f"{self._slot}/{self.name}.{day}/"

    def directory(self, path: str, day: int) -> Directory:
        """The directory for claims of files whose directory in the spool is ``path``.

        Raises:
            OSError: it cannot be made.
        """
        found = self._directories.get((path, day))
        if found is None:
            if path:
                parent, _, last = path.rpartition("/")
                found = self._spares.make(self.directory(parent, day), last)
                self._spares.need(path.count("/") + 2)
            else:
                found = self._spares.make(self._mine, f"{self.name}.{day}")
            self._directories[path, day] = found
        return found

    def remove(self) -> None:
        """Close the directories, and remove those that are empty; one that holds a claim stays for the next pass."""
        for path, day in sorted(self._directories, key=lambda key: len(key[0]), reverse=True):
            above, _, last = path.rpartition("/")
            parent, name = (self._directories[above, day], last) if path else (self._mine, f"{self.name}.{day}")
            with contextlib.suppress(OSError):
                self._spares.remove(parent, name)
        for directory in self._directories.values():
            directory.close()
        self._directories.clear()


def day_of_batch(name: str) -> int | None:
    """The day in the name of a claim directory, as `datetime.date.toordinal` counts; None where there is none."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 8 and 0 < int(digits) <= _LAST_DAY else None


def _holds(directory: Directory, id: str, inode: int) -> bool:
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was finished meanwhile
                if entry.is_dir(follow_symlinks=False):
                    with directory.open(entry.name) as inner:
                        if _holds(inner, id, inode):
                            return True
                elif entry.inode() == inode and _is(directory, entry.name, id):
                    return True
    return False


def _is(directory: Directory, name: str, id: str) -> bool:
    """Whether a file has that identity. A dead file's inode is used again, so the number alone does not tell."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        return identity(fd) == id
    finally:
        os.close(fd)


def _remove_empty(root: Directory, remove: Callable[[Directory, str], None]) -> None:
    for name in list(_names(root)):
        if is_spare(name):
            continue
        try:
            directory = root.open(name)
        except OSError:
            continue  # a claim, or gone
        with directory:
            _remove_empty(directory, remove)
        with contextlib.suppress(OSError):
            remove(root, name)


def _names(directory: Directory) -> Iterator[str]:
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            yield entry.name
