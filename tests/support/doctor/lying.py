"""A file system in user space that passes everything on to a directory, and lies in the ways that its name tells.

Run as a program: ``lying.py VARIANT DIRECTORY MOUNTPOINT SECONDS [SUBTYPE]``; it ends when it is unmounted. With a
subtype the kernel calls the file system ``fuse.SUBTYPE``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

_STAT = ("st_atime", "st_ctime", "st_gid", "st_ino", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid")


class Honest(mfusepy.Operations):
    """Passes everything on. Locks are the kernel's."""

    use_ns = True
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, root: str, wait: float) -> None:
        self.root, self.wait = root, wait

    def full(self, path: str) -> str:
        return self.root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        info = os.fstat(fh) if fh is not None else os.lstat(self.full(path))
        return self.facts(info)

    def facts(self, info: os.stat_result) -> dict[str, int]:
        found = {key: getattr(info, key) for key in _STAT}
        return found | {key: getattr(info, f"{key}_ns") for key in ("st_atime", "st_mtime", "st_ctime")}

    def readdir(self, path: str, fh: int) -> Any:
        yield from (".", "..")
        with os.scandir(self.full(path)) as entries:
            for entry in entries:
                yield entry.name, {"st_ino": entry.inode(), "st_mode": 0}, 0  # number 0 would not be listed

    def mkdir(self, path: str, mode: int) -> int:
        return os.mkdir(self.full(path), mode) or 0

    def rmdir(self, path: str) -> int:
        return os.rmdir(self.full(path)) or 0

    def unlink(self, path: str) -> int:
        return os.unlink(self.full(path)) or 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.full(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.full(path), flags & os.O_ACCMODE)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return os.truncate(self.full(path), length) or 0

    def release(self, path: str, fh: int) -> int:
        return os.close(fh) or 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return os.fsync(fh) or 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return os.chmod(self.full(path), mode) or 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return os.utime(self.full(path), ns=times) or 0 if times else os.utime(self.full(path)) or 0

    def symlink(self, target: str, source: str) -> int:
        return Path(self.full(target)).symlink_to(source) or 0

    def readlink(self, path: str) -> str:
        return os.readlink(self.full(path))

    def link(self, target: str, source: str) -> int:
        return os.link(self.full(source), self.full(target), follow_symlinks=False) or 0

    def rename(self, old: str, new: str) -> int:
        return os.rename(self.full(old), self.full(new)) or 0

    def rename_new(self, old: str, new: str) -> int:
        """RENAME_NOREPLACE."""
        libc = ctypes.CDLL(None, use_errno=True)
        names = [os.fsencode(self.full(name)) for name in (old, new)]
        if libc.renameat2(-100, names[0], -100, names[1], 1) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        info = os.statvfs(self.full(path))
        keys = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")
        return {key: getattr(info, key) for key in keys}


class Grants(Honest):
    """Gives every lock to everybody. The counter's writes are slow, so that two meet."""

    def lock(self, path: str, fh: int, cmd: int, lock: Any) -> int:
        if cmd == fcntl.F_GETLK:
            lock.contents.l_type = fcntl.F_UNLCK
        return 0

    def flock(self, path: str, fh: int, op: int) -> int:
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path.endswith(".n"):
            time.sleep(0.001)
        return super().write(path, data, offset, fh)


class Refuses(Honest):
    """Has no locks, links, symbolic links or accents, and says so."""

    options = {"direct_io": True}  # noqa: RUF012

    def lock(self, path: str, fh: int, cmd: int, lock: Any) -> int:
        raise mfusepy.FuseOSError(errno.ENOLCK)

    def flock(self, path: str, fh: int, op: int) -> int:
        raise mfusepy.FuseOSError(errno.ENOLCK)

    def link(self, target: str, source: str) -> int:
        raise mfusepy.FuseOSError(errno.EPERM)

    def chmod(self, path: str, mode: int) -> int:
        raise mfusepy.FuseOSError(errno.EPERM)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        raise mfusepy.FuseOSError(errno.EPERM)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        name = os.path.basename(path)
        if not name.isascii() or ":" in name:
            raise mfusepy.FuseOSError(errno.EINVAL)
        if len(name) > 143:
            raise mfusepy.FuseOSError(errno.ENAMETOOLONG)
        return super().create(path, mode, fi)


class Clings(Honest):
    """Has one table for both families, never wakes a waiter, never frees a dead holder's lock; its calls hang."""

    def __init__(self, root: str, wait: float) -> None:
        super().__init__(root, wait)
        self._holders: dict[str, int] = {}
        self._mutex = threading.Lock()

    def _take(self, path: str, fh: int, shared: bool, unlock: bool, wait: bool) -> int:
        with self._mutex:
            if unlock:
                if self._holders.get(path) == fh:
                    del self._holders[path]
                return 0
            if self._holders.get(path, fh) == fh:
                if not shared:
                    self._holders[path] = fh
                return 0
        if wait:
            time.sleep(self.wait)
        raise mfusepy.FuseOSError(errno.EAGAIN)

    def lock(self, path: str, fh: int, cmd: int, lock: Any) -> int:
        kind = lock.contents.l_type
        if cmd == fcntl.F_GETLK:
            lock.contents.l_type = fcntl.F_UNLCK
            return 0
        return self._take(path, fh, kind == fcntl.F_RDLCK, kind == fcntl.F_UNLCK, cmd == fcntl.F_SETLKW)

    def flock(self, path: str, fh: int, op: int) -> int:
        shared, unlock = bool(op & fcntl.LOCK_SH), bool(op & fcntl.LOCK_UN)
        return self._take(path, fh, shared, unlock, not op & fcntl.LOCK_NB)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        time.sleep(self.wait)
        return 0

    def release(self, path: str, fh: int) -> int:
        return 0  # leaks: a number that is used again would be another holder's


class Twists(Honest):
    """Says yes and does something else: overwrites, loses, renames in two steps, shifts clocks, owners and names."""

    options = {"attr_timeout": 0.0, "entry_timeout": 0.0}  # noqa: RUF012

    def __init__(self, root: str, wait: float) -> None:
        super().__init__(root, wait)
        self._calls = itertools.count()
        self._made_by: dict[str, int] = {}
        self._unseen: dict[str, Iterator[int]] = {}
        self._replaced: set[str] = set()
        self._links: set[str] = set()

    def full(self, path: str) -> str:
        head, _, name = path.rpartition("/")
        if not name.startswith("."):
            name = unicodedata.normalize("NFC", name.replace(":", "_")).lower()
        return f"{self.root}{head}/{name}"

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if fh is not None:
            return self.facts(os.fstat(fh))
        pid = mfusepy.fuse_get_context()[2]
        if self._made_by.get(path, pid) != pid and next(self._unseen.setdefault(path, itertools.count())) < 2:
            raise mfusepy.FuseOSError(errno.ENOENT)  # or the kernel itself would refuse to overwrite
        if path in self._links:  # once: the kernel looks whether it got what it asked for
            self._links.discard(path)
            return self.facts(os.lstat(self.full(path)))
        return self.facts(os.stat(self.full(path)))  # follows links

    def facts(self, info: os.stat_result) -> dict[str, int]:
        late = 3600 * 10**9 + next(self._calls) * 10**7
        return super().facts(info) | {"st_uid": 65534, "st_mtime": info.st_mtime_ns - late}

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def link(self, target: str, source: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.full(target))
        self._made_by[target] = mfusepy.fuse_get_context()[2]
        return super().link(target, source)

    def symlink(self, target: str, source: str) -> int:
        self._links.add(target)
        return super().symlink(target, source)

    def rename_new(self, old: str, new: str) -> int:
        self._made_by[new] = mfusepy.fuse_get_context()[2]
        return super().rename(old, new)

    def rename(self, old: str, new: str) -> int:
        self._replaced.add(new)
        return super().rename(old, new)

    def open(self, path: str, flags: int) -> int:
        if path in self._replaced and next(self._calls) % 3 == 0:
            raise mfusepy.FuseOSError(errno.ENOENT)  # as between unlink and rename
        return super().open(path, flags)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if len(data) == 3000:  # a record that is appended
            offset = max(0, offset - 1500)
        return super().write(path, data, offset, fh)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        raise mfusepy.FuseOSError(errno.EIO)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        raise mfusepy.FuseOSError(errno.EIO)

    def statfs(self, path: str) -> dict[str, int]:
        return super().statfs(path) | {"f_bavail": 0, "f_favail": 0, "f_ffree": 0}


class Forgets(Honest):
    """Lists nothing."""

    def readdir(self, path: str, fh: int) -> Any:
        return [".", ".."]


VARIANTS = {one.__name__.lower(): one for one in (Honest, Grants, Refuses, Clings, Twists, Forgets)}


class _File(mfusepy.FUSE):
    """Hands on what the library leaves out: it ignores the flags of rename."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        rename = self.operations.rename_new if flags else self.operations.rename
        return int(rename(os.fsdecode(old), os.fsdecode(new)))


def main() -> None:
    variant, root, mountpoint, wait, *subtype = sys.argv[1:]
    Path(mountpoint).mkdir(exist_ok=True)
    operations = VARIANTS[variant](root, float(wait))
    options = operations.options | ({"subtype": subtype[0], "fsname": "server:/export"} if subtype else {})
    _File(operations, mountpoint, foreground=True, use_ino=True, **options)


if __name__ == "__main__":
    main()
