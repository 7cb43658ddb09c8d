"""One destination for a spool: a sidecar does not start next to one that collects into another.

Two sidecars with different destinations would share the files of one spool between them by chance, and each would
follow its logs whole. Each living sidecar keeps a file with its destination next to its slot's lock, and holds a lock
on that file. The file of one that died has no lock, and does not count::

    .sharedvol/movers/<slot>.to      a line with the destination's id, and its path
    .sharedvol/movers/start.lock     held while the files are compared

Destinations are compared by an id that is kept in them, because one volume may be mounted at two paths. On a full disk
a sidecar starts without that file: its work may be what makes room.
"""

from __future__ import annotations

import fcntl
import os

from sharedvol import LockTimeout
from sharedvol_sidecar.errors import FULL, ConfigError
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import directory_id, private_lock
from sharedvol_sidecar.transfer.claims import Claims, slot_lock

_SUFFIX = ".to"
_PATIENCE = 10.0  # seconds: the lock is held for some milliseconds
_MAX_FILE = 10_000
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Serving:
    """The note that a sidecar collects from a spool into a destination, until `close`.

    Args:
        claims: this sidecar's claims, with its slot.
        root: the destination's root.
        spool: the spool's path, for the message.
        collected: the destination's path, for the message.

    Raises:
        ConfigError: a living sidecar collects from the spool into another destination.
        OSError: the note cannot be written.
        LockTimeout: another sidecar has been starting for 10 seconds.
    """

    def __init__(self, claims: Claims, root: Directory, spool: str, collected: str) -> None:
        self._claims, self._movers, self._name = claims, claims.movers, f"{claims.slot}{_SUFFIX}"
        self._fd = -1
        lock = private_lock(f"/proc/self/fd/{self._movers.fd}/start.lock")
        try:
            with lock.acquire(timeout=_PATIENCE):
                ours = directory_id(root)
                self._compare(ours, spool, collected)
                self._write(ours, collected)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError) or error.errno not in FULL:
                raise

    def close(self) -> None:
        """Withdraw the note."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def has_older(self) -> bool:
        """Return whether a sidecar is running that has no note: one of 0.1.0, which sets no marks on live copies.

        A sidecar that is just starting, or that has started on a full disk, counts as one. Then logs wait longer.
        """
        others = self._claims.other_slots()
        return any(self._read(f"{slot}{_SUFFIX}") is None and self._is_taken(slot) for slot in others)

    def _is_taken(self, slot: str) -> bool:
        try:
            with slot_lock(self._movers, slot).acquire(timeout=0):
                return False
        except LockTimeout:
            return True

    def _write(self, id: str, collected: str) -> None:
        self._fd = os.open(self._name, _FLAGS | os.O_CREAT, 0o600, dir_fd=self._movers.fd)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{id}\n".encode() + os.fsencode(collected), 0)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _compare(self, id: str, spool: str, collected: str) -> None:
        for name in os.listdir(self._movers.fd):
            other = self._read(name) if name.endswith(_SUFFIX) else None
            if other is not None and other[0] != id:
                raise ConfigError(
                    f"--to {collected!r}: another sidecar that is running collects --from {spool!r} into {other[1]!r}; "
                    "use that --to, or stop that sidecar first"
                )

    def _read(self, name: str) -> tuple[str, str] | None:
        """The id and the path of a living sidecar's destination; None where it is not alive."""
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._movers.fd)
        except FileNotFoundError:
            return None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return None
            id, _, shown = os.pread(fd, _MAX_FILE, 0).partition(b"\n")
            return id.decode("ascii", "replace"), os.fsdecode(shown)
        finally:
            os.close(fd)
