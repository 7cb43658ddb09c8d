"""An open register of replicas, which reads and changes files relative to descriptors only."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from dataclasses import dataclass

from sharedvol.errors import LockFileError, PresenceError, PublishError, describe
from sharedvol.filesystem import open_file, read_file
from sharedvol.locks.file import linux
from sharedvol.locks.file.fork import close_tracked, track
from sharedvol.publishing import publish, remove_stale_temporaries
from sharedvol.volume.record import ReplicaRecord, is_name
from sharedvol.volume.register_making import GATE


@dataclass(frozen=True, slots=True)
class OpenRegister:
    """The three open directories of a register.

    Attributes:
        path: the register's path, for messages. It is never opened.
        top: a descriptor of ``.replicas``.
        names: a descriptor of ``.replicas/names``.
        slots: a descriptor of ``.replicas/slots``.
    """

    path: str
    top: int
    names: int
    slots: int

    def name_lock(self, name: str) -> str:
        """Return the path of a name's lock file, for messages."""
        return os.path.join(self.path, "names", f"{name}.lock")

    def slot_lock(self, slot: int) -> str:
        """Return the path of a slot's lock file, for messages."""
        return os.path.join(self.path, "slots", f"{slot}.lock")

    def list_names(self) -> list[str]:
        """Return every name that has a lock file or a record, sorted.

        Raises:
            PresenceError: the directory cannot be read.
        """
        found = {os.path.splitext(file)[0] for file in self._list(self.names) if file.endswith((".lock", ".json"))}
        return sorted(name for name in found if is_name(name))

    def held_slots(self) -> list[int]:
        """Return the slots that a process holds, sorted.

        Raises:
            PresenceError: the directory cannot be read.
        """
        found = {name.removesuffix(".lock") for name in self._list(self.slots)}
        numbers = sorted(int(name) for name in found if name.isascii() and name.isdecimal() and len(name) < 6)
        return [number for number in numbers if is_held(self.slots, f"{number}.lock")]

    def is_alive(self, name: str) -> bool:
        """Return whether a process holds the name now. This takes no lock.

        Raises:
            PresenceError: the file system has no locks.
        """
        return is_held(self.names, f"{name}.lock")

    def is_known(self, name: str) -> bool:
        """Return whether the name has a record, readable or not."""
        try:
            os.stat(f"{name}.json", dir_fd=self.names, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str) -> ReplicaRecord:
        """Return the record of a replica. Fields that cannot be read or are not valid are unknown."""
        return ReplicaRecord.parse(name, read_file(f"{name}.json", self.names))

    def write(self, record: ReplicaRecord) -> None:
        """Write the record of a replica. It replaces an earlier one atomically.

        Raises:
            PresenceError: it cannot be written.
        """
        directory = f"/proc/self/fd/{self.names}"
        shown = os.path.join(self.path, "names", f"{record.name}.json")
        try:
            remove_stale_temporaries(directory, allow_network=True)  # `ReplicaRegistry.open` has checked
            self._remove_special(f"{record.name}.json")
            with publish(f"{directory}/{record.name}.json", replace=True, permissions=0o644) as file:
                json.dump(record.as_dict(), file)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EISDIR):
                raise PresenceError(
                    f"cannot replace {shown!r}: it belongs to another user, or is a directory; remove it as root or as "
                    "that user"
                ) from error
            cause = error.__cause__ if isinstance(error, PublishError) else error
            reason = describe(cause) if isinstance(cause, OSError) else str(error)
            raise PresenceError(
                f"cannot write {shown!r}: {reason}; give this user write permission on the volume, and free some space"
            ) from error

    def _remove_special(self, name: str) -> None:
        """Remove a FIFO or device at the name of a record, because `publish` does not replace those."""
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=self.names, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=self.names)

    def remove(self, name: str) -> None:
        """Remove the record of a replica. Its lock file stays.

        Raises:
            PresenceError: it cannot be removed.
        """
        try:
            os.unlink(f"{name}.json", dir_fd=self.names)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise PresenceError(
                f"cannot remove {os.path.join(self.path, 'names', name + '.json')!r}: {describe(error)}; "
                "remove it as root or as the user who owns it"
            ) from error

    def forget(self, name: str) -> bool:
        """Remove the record and the lock file of a dead replica. The caller holds ``join.lock``.

        Returns:
            False if there is nothing to remove, a process holds the name, or this process may not remove a file.
        """
        path = self.name_lock(name)
        try:
            lock = track(linux, lambda: open_file(f"{name}.lock", self.names, os.O_RDWR))
        except FileNotFoundError:
            return self.is_known(name) and self._unlink(f"{name}.json")
        except OSError:
            return False
        try:
            is_ours = stat.S_ISREG(os.fstat(lock).st_mode) and linux.try_both(lock, path, False)
            # The record first, because a lock file without a record means nothing.
            return (
                is_ours
                and linux.is_current(path, linux.identify(lock, path), self.names)
                and self._unlink(f"{name}.json")
                and self._unlink(f"{name}.lock")
            )
        except LockFileError:
            return False
        finally:
            close_tracked(linux, lock)

    def remove_lock(self, name: str) -> None:
        """Remove the lock file of a dead replica, if it can be. The caller holds it, and ``join.lock``."""
        self._unlink(f"{name}.lock")

    def is_changing(self) -> bool:
        """Return whether a process holds ``join.lock`` now. This takes no lock."""
        try:
            fd = open_file(GATE, self.top)
        except OSError:
            return False
        try:
            return linux.conflict(fd) is not None
        except OSError:
            return False
        finally:
            os.close(fd)

    def _unlink(self, file: str) -> bool:
        try:
            os.unlink(file, dir_fd=self.names)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _list(self, directory: int) -> list[str]:
        try:
            return os.listdir(directory)
        except OSError as error:
            raise PresenceError(
                f"cannot read {self.path!r}: {describe(error)}; give this user permission on the directory"
            ) from error


def is_held(directory: int, name: str) -> bool:
    """Return whether replicas hold a lock file. They hold it shared; an exclusive lock is of a process that removes it.

    Raises:
        PresenceError: the file system has no locks.
    """
    try:
        fd = open_file(name, directory)
    except PermissionError:
        return True  # the lock cannot be queried, and it does no harm to report a dead replica as alive
    except OSError:
        return False  # missing, or not a file that a process could hold
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            found = linux.conflict(fd)
            return found is not None and not found[0]
        except OSError as error:
            raise PresenceError(
                f"cannot query the lock {name!r}: {describe(error)}; keep the volume on a local file system"
            ) from error
