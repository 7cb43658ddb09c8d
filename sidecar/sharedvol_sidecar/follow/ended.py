"""Logs that were sealed though they still exist, in a place that no sidecar scans; in case one of them comes back.

A rotated log may be moved out of the sources (logrotate's ``olddir``). Its live copy then gets the final name. If the
log itself is moved back later, unchanged, its lines are in the destination already: it is removed from the spool, and
is not collected a second time. One small file for each such log: ``.sharedvol/ended/<spool>/<identity>.json``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os

from sharedvol import publish
from sharedvol_sidecar.catalog.files import CollectedFiles, Found, is_plain, open_file
from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.changes import Changes
from sharedvol_sidecar.fs.content import same
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.inode import identity, inode_of
from sharedvol_sidecar.fs.private import open_private
from sharedvol_sidecar.monitor.liveness import Liveness, beating
from sharedvol_sidecar.transfer.claims import Claims
from sharedvol_sidecar.transfer.item import Item

_MOST = 1_000  # logs that are remembered; the oldest are forgotten first
_MAX_ENTRY = 1_000_000


class EndedLogs:
    """The logs of one spool that were sealed though they still exist.

    Args:
        root: the destination's root.
        spool_id: tells this spool from others with the same destination.
        claims: this sidecar's claim directories.
        events: receives each log that came back.
        liveness: receives a sign of life for each chunk that is compared.
    """

    def __init__(self, root: Directory, spool_id: str, claims: Claims, events: Events, liveness: Liveness) -> None:
        self._root, self._claims, self._events = root, claims, events
        self._liveness = liveness
        directory = open_private(root)
        for name in ("ended", spool_id):
            directory = directory.make(name, 0o700)[0]
        self._directory = directory
        self._changes = Changes(directory)
        self._inodes: set[int] = set()

    def close(self) -> None:
        """Close the directory of the records. Does nothing the second time."""
        self._directory.close()

    def remember(self, id: str, target: str, encoding: str) -> None:
        """Note that a log's copy has its final name. Call it before the copy goes, so that no kill comes in between.

        Args:
            id: the log's.
            target: that name, relative to the destination.
            encoding: what the file is compressed by.
        """
        directory = self._directory
        with publish(f"/proc/self/fd/{directory.fd}/{id}.json", replace=True) as file:
            file.write(json.dumps({"target": target, "encoding": encoding}))
        found = {}
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    with contextlib.suppress(FileNotFoundError):  # another sidecar has removed it
                        found[entry.name] = entry.stat().st_mtime_ns
        # Later than every other note, also where the clock was set back.
        mine = f"{id}.json"
        latest = max((time_ns for name, time_ns in found.items() if name != mine), default=0)
        if found.get(mine, 0) <= latest:
            found[mine] = latest + 1
            os.utime(mine, ns=(latest + 1, latest + 1), dir_fd=directory.fd)
        for name in sorted(found, key=found.__getitem__)[:-_MOST]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory.fd)

    def forget(self, id: str) -> None:
        """Remove the note on a log: its copy does not have the final name any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{id}.json", dir_fd=self._directory.fd)

    def holds(self, fd: int, inode: int) -> bool:
        """Return whether a file is such a log, and the destination holds all of it."""
        if inode not in self._known():
            return False
        found = self._collected(identity(fd, inode))
        if found is None:
            return False
        stored = open_file(found[0])
        try:
            return same(fd, stored, found[1], beating(self._liveness, lambda: True))
        finally:
            os.close(stored)

    def discard(self, item: Item) -> bool:
        """Remove a file from the spool if `holds` is true of it. Return whether that is so.

        It is claimed first, so that a new file under its name is not removed instead. A claim that a kill leaves is
        discarded by the sidecar that finds it.
        """
        try:
            if not self.holds(item.fd, item.info.st_ino):
                return False
        except OSError:
            return False  # it cannot be compared now, so it is collected: nothing is lost
        candidate = item.candidate
        batch = None
        if not candidate.claimed:
            batch = self._claims.new_batch()
            try:
                item.claim = batch.directory(candidate.path.rpartition("/")[0], item.day)
                os.rename(candidate.name, candidate.name, src_dir_fd=candidate.directory.fd, dst_dir_fd=item.claim.fd)
            except OSError as error:
                batch.remove()
                if error.errno in (errno.ENOENT, *FULL):
                    return True  # it was removed; or the spool has no room for a claim, and it waits
                raise
        assert item.claim is not None
        is_it = item.claim.inode(candidate.name) == (item.info.st_dev, item.info.st_ino)
        if is_it and item.unchanged() and item.going_on():
            os.unlink(candidate.name, dir_fd=item.claim.fd)
            self._events.returned(candidate.path, "it was collected when it was moved away; it is removed")
        else:
            item.put_back(self._claims.put_backs)
        if batch is not None:
            batch.remove()
        return True

    def _known(self) -> set[int]:
        """The inodes of these logs: a file with none of these numbers needs no further look."""
        if self._changes.poll():  # another sidecar may have sealed a log at any moment
            self._inodes = set()
            for name in os.listdir(self._directory.fd):
                with contextlib.suppress(ValueError):
                    self._inodes.add(inode_of(name))
        return self._inodes

    def _collected(self, id: str) -> tuple[Found, str] | None:
        """The collected file of a log, and what it is compressed by."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{id}.json", flags, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(os.read(fd, _MAX_ENTRY))
            target, encoding = str(entry["target"]), str(entry["encoding"])
        except (ValueError, TypeError, KeyError):
            return None
        finally:
            os.close(fd)
        found = CollectedFiles(self._root).find(target) if is_plain(target) else None
        return (found, encoding) if found is not None else None
