"""Who is alive on a volume: what lies on the disk, and how the kernel is asked.

::

    .replicas/                 mode 1777, for replicas of every user
      join.lock                one join or removal at a time
      names/<name>.lock        held shared by each process of the replica, for life
      names/<name>.json        what is known of it; never believed over the lock
      slots/<n>.lock           held like the name's

Only the lock says who is alive, so no clock is needed to tell the dead from the slow: the kernel frees it
when its last holder dies, not before. A looker asks whether the lock is held and takes nothing, so it never
stands in the way of one who joins. The name is locked last: once it is, all else about the replica is true.

Whoever may write the volume can write here, so whatever is found is checked before it is used: no symbolic
link is followed, nothing but regular files is read, and no more of them than there should be.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from sharedvol.errors import LockFileError, PresenceError, describe
from sharedvol.identity import worker_token
from sharedvol.information import MAX_SLOTS, Information, is_name, read_file
from sharedvol.locks import kernel
from sharedvol.locks.handles import close_handle, open_handle
from sharedvol.publish import publish, remove_stale_temporaries

DIRECTORY: Final = ".replicas"
_UNUSABLE: Final = (errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.EACCES)


class Claim:
    """A lock file to be held shared for as long as the process lives, or until `drop`.

    Unlike a `FileLock` it belongs to no thread. A forked child starts without it, and must not drop it.

    Raises:
        LockFileError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle: Any = open_handle(kernel, path, 0o666)

    def is_held(self) -> bool:
        """Whether anybody, this process included, holds it through another descriptor."""
        return kernel.conflict(self._handle) is not None

    def take(self) -> bool:
        """Hold it, together with others who do; False if somebody has it for himself alone."""
        identity = kernel.identify(self._handle, self._path)
        return kernel.try_both(self._handle, self._path, True) and kernel.is_current(self._path, identity)

    def drop(self) -> None:
        """Let go, and close."""
        close_handle(kernel, self._handle)


class Register:
    """The directory ``.replicas`` of one volume. Whoever changes it holds ``join.lock``.

    Args:
        volume: the volume's absolute path.
    """

    def __init__(self, volume: str) -> None:
        self._volume = volume
        self._top = os.path.join(volume, DIRECTORY)
        self.gate = os.path.join(self._top, "join.lock")

    def name_lock(self, name: str) -> str:
        """The lock file of a name."""
        return os.path.join(self._top, "names", f"{name}.lock")

    def slot_lock(self, slot: int) -> str:
        """The lock file of a slot."""
        return os.path.join(self._top, "slots", f"{slot}.lock")

    def exists(self) -> bool:
        """Whether anybody ever joined.

        Raises:
            PresenceError: what is there is not a directory of ours.
        """
        with self._open("names") as names, self._open("slots") as slots:
            return names is not None and slots is not None

    def make(self) -> None:
        """Make the directories where they are missing.

        Raises:
            PresenceError: they cannot be made.
        """
        while not self.exists():
            try:
                self._make()
            except OSError as error:
                if error.errno == errno.ENOENT and os.path.isdir(self._volume):
                    continue  # another one had made it before us, and removed what we were making
                raise self._failed("make", error) from error

    def _make(self) -> None:
        """All of it gets its name at once, with its modes: no umask and no kill leaves half of it in the way."""
        made = f"{self._top}.{worker_token()}.new"
        os.mkdir(made, 0o700)
        try:
            for name in ("names", "slots", "."):
                path = os.path.join(made, name)
                if name != ".":
                    os.mkdir(path, 0o700)
                os.chmod(path, 0o1777)
            os.close(kernel.open_lock_file(os.path.join(made, "join.lock"), 0o666))
            os.rename(made, self._top)
        except BaseException as error:
            _remove(made)
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self.exists():  # there is something, but not what we would have made
                raise PresenceError(
                    f"{self._top!r} is not a whole register of replicas: remove it while no replica runs"
                ) from error
        prefix = f"{DIRECTORY}."
        for name in os.listdir(self._volume):  # one that was killed here left it; one that lives makes it again
            if name.startswith(prefix) and name.endswith(".new"):
                _remove(os.path.join(self._volume, name))

    def names(self) -> list[str]:
        """Every name that was ever joined and may be alive or known, sorted.

        Raises:
            PresenceError: the directory cannot be read.
        """
        with self._open("names") as names:
            if names is None:
                return []
            try:
                files = os.listdir(names)
            except OSError as error:
                raise self._failed("read", error) from error
        found = {os.path.splitext(file)[0] for file in files if file.endswith((".lock", ".json"))}
        return sorted(name for name in found if is_name(name))

    def slots(self) -> list[int]:
        """The slots that are held, whoever holds them.

        Raises:
            PresenceError: the directory cannot be read.
        """
        with self._open("slots") as slots:
            if slots is None:
                return []
            try:
                found = {name.removesuffix(".lock") for name in os.listdir(slots)}
            except OSError as error:
                raise self._failed("read", error) from error
            numbers = sorted(int(name) for name in found if name.isascii() and name.isdecimal() and len(name) < 6)
            return [number for number in numbers if _is_held(slots, f"{number}.lock")]

    def is_alive(self, name: str) -> bool:
        """Whether a process holds the name now. Takes nothing.

        Raises:
            PresenceError: the directory cannot be read.
        """
        with self._open("names") as names:
            return names is not None and _is_held(names, f"{name}.lock")

    def is_known(self, name: str) -> bool:
        """Whether there is information about it, readable or not.

        Raises:
            PresenceError: the directory cannot be read.
        """
        with self._open("names") as names:
            return names is not None and _exists(names, f"{name}.json")

    def read(self, name: str) -> Information:
        """What is known of a replica. What cannot be read or believed is unknown.

        Raises:
            PresenceError: the directory cannot be read.
        """
        with self._open("names") as names:
            text = None if names is None else read_file(names, f"{name}.json")
        return Information.parse(name, text)

    def write(self, information: Information) -> None:
        """Put information beside the lock, whole, in the place of what is there.

        Raises:
            PresenceError: it cannot be written.
        """
        directory = os.path.join(self._top, "names")
        path = os.path.join(directory, f"{information.name}.json")
        try:
            remove_stale_temporaries(directory)
            with publish(path, replace=True, permissions=0o644) as file:
                json.dump(information.as_dict(), file)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EISDIR):
                raise PresenceError(
                    f"cannot replace {path!r}, which another user's replica left, or which is a directory: "
                    "remove it as root or as that user"
                ) from error
            raise PresenceError(f"cannot record this replica: {error}") from error

    def remove(self, name: str) -> None:
        """Remove the information about a replica; its lock file stays.

        Raises:
            PresenceError: it cannot be removed.
        """
        path = os.path.join(self._top, "names", f"{name}.json")
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise PresenceError(
                f"cannot remove {path!r}: {describe(error)}; do it as root or as the user who owns it"
            ) from error

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int | None]:
        """A descriptor of one of the directories, through no symbolic link; None where it is missing."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        opened: list[int] = []
        try:
            try:
                opened.append(os.open(self._top, flags))
                opened.append(os.open(name, flags, dir_fd=opened[0]))
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                raise self._failed("open", error) from error
            yield opened[-1]
        finally:
            for fd in opened:
                os.close(fd)

    def _failed(self, what: str, error: OSError) -> PresenceError:
        hint = {
            errno.ENOENT: "create the directory, or mount its volume",
            errno.EROFS: "who joins must write there: mount the volume read-write",
            errno.EACCES: "give this user permission on the volume's directory",
            errno.ENOTDIR: "something else is in its place, or a symbolic link, which is never followed: remove it",
            errno.ELOOP: "a symbolic link, which is never followed, is in its place: remove it",
        }.get(error.errno or 0, "see the reason")
        return PresenceError(f"cannot {what} {self._top!r}: {describe(error)}; {hint}")


def claim_slot(register: Register) -> tuple[int, Claim]:
    """The lowest slot that is free, held.

    Raises:
        LockFileError: a slot's file cannot be opened or locked.
        PresenceError: there is no free slot.
    """
    for slot in range(MAX_SLOTS):
        try:
            claim = Claim(register.slot_lock(slot))
        except LockFileError as error:
            if error.errno in _UNUSABLE:
                continue  # something else has this slot's name: whoever put it there keeps the number
            raise
        try:
            if not claim.is_held() and claim.take():
                return slot, claim
        except BaseException:
            claim.drop()
            raise
        claim.drop()
    raise PresenceError(f"all {MAX_SLOTS} slots of {register.gate!r} are taken: look for what holds them")


def _is_held(directory: int, name: str) -> bool:
    """Whether replicas hold a lock file: a shared lock. An exclusive one is of somebody who removes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except PermissionError:
        return True  # the kernel cannot be asked: the dead do no harm when they are taken for alive
    except OSError:
        return False  # missing, or no file that anybody could hold
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        found = kernel.conflict(fd)
        return found is not None and not found[0]
    except OSError as error:
        raise PresenceError(
            f"cannot ask who holds {name!r}: {describe(error)}; keep the volume on a local file system"
        ) from error
    finally:
        os.close(fd)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _remove(made: str) -> None:
    """Remove what `Register._make` made, as far as it is ours to remove."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(made, "join.lock"))
    for name in ("names", "slots", ""):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(made, name))
