"""An NFS client in user space: libnfs (NFSv4) as a FUSE file system, for the tests of locks on NFS.

Run as a program: ``libnfs_fuse.py EXPORT MOUNTPOINT``; it ends when it is unmounted. It implements no locks, so the
kernel keeps them for each mount: as with NFS mounted ``local_lock=all``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from ctypes.util import find_library
from typing import Any

import mfusepy

_STAT = "dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime".split()
_STAT += ["atime_nsec", "mtime_nsec", "ctime_nsec", "used"]
_LINE = 1 << 20


class _Stat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _STAT]


class _Entry(ctypes.Structure):
    pass


_Entry._fields_ = [("next", ctypes.POINTER(_Entry)), ("name", ctypes.c_char_p)]

nfs = ctypes.CDLL(find_library("nfs"))
nfs.nfs_init_context.restype = ctypes.c_void_p
nfs.nfs_readdir.restype = ctypes.POINTER(_Entry)
_P, _S, _I, _U = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64
for _name, _types in {
    "set_version": (_P, _I),
    "mount": (_P, _S, _S),
    "lstat64": (_P, _S, _P),
    "mkdir2": (_P, _S, _I),
    "rmdir": (_P, _S),
    "unlink": (_P, _S),
    "open": (_P, _S, _I, _P),
    "create": (_P, _S, _I, _I, _P),
    "pread": (_P, _P, _U, _U, _P),
    "pwrite": (_P, _P, _U, _U, _P),
    "fsync": (_P, _P),
    "truncate": (_P, _S, _U),
    "chmod": (_P, _S, _I),
    "link": (_P, _S, _S),
    "rename": (_P, _S, _S),
    "opendir": (_P, _S, _P),
    "readdir": (_P, _P),
    "closedir": (_P, _P),
}.items():
    getattr(nfs, f"nfs_{_name}").argtypes = _types


class Client(mfusepy.Operations):
    """One mount. The library calls one operation at a time."""

    use_ns = True

    def __init__(self, export: str) -> None:
        self._context = nfs.nfs_init_context()
        nfs.nfs_set_version(self._context, 4)
        self._do("mount", b"127.0.0.1", export.encode())

    def _do(self, name: str, *arguments: Any) -> int:
        done = int(getattr(nfs, f"nfs_{name}")(self._context, *arguments))
        if done < 0:
            raise mfusepy.FuseOSError(-done)
        return done

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        found = _Stat()
        self._do("lstat64", os.fsencode(path), ctypes.byref(found))
        values = {name: int(getattr(found, name)) for name in _STAT}
        times = {f"st_{name}": values[name] * 10**9 + values[f"{name}_nsec"] for name in ("atime", "mtime", "ctime")}
        return {f"st_{name}": values[name] for name in ("ino", "mode", "nlink", "uid", "gid", "size")} | times

    def readdir(self, path: str, fh: int) -> Any:
        directory = ctypes.c_void_p()
        self._do("opendir", os.fsencode(path), ctypes.byref(directory))
        names = []
        while entry := nfs.nfs_readdir(self._context, directory):
            names.append(os.fsdecode(entry.contents.name))
        nfs.nfs_closedir(self._context, directory)
        return [".", "..", *(name for name in names if name not in (".", ".."))]

    def mkdir(self, path: str, mode: int) -> int:
        return self._do("mkdir2", os.fsencode(path), 0o1777)  # see `chmod`

    def rmdir(self, path: str) -> int:
        return self._do("rmdir", os.fsencode(path))

    def unlink(self, path: str) -> int:
        return self._do("unlink", os.fsencode(path))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        handle = ctypes.c_void_p()
        self._do("create", os.fsencode(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, ctypes.byref(handle))
        return int(handle.value or 0)

    def open(self, path: str, flags: int) -> int:
        handle = ctypes.c_void_p()
        self._do("open", os.fsencode(path), flags & os.O_ACCMODE, ctypes.byref(handle))
        return int(handle.value or 0)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        buffer = ctypes.create_string_buffer(min(size, _LINE))
        return buffer.raw[: self._do("pread", fh, offset, len(buffer), buffer)]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._do("pwrite", fh, offset, len(data), data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return self._do("truncate", os.fsencode(path), length)

    def release(self, path: str, fh: int) -> int:
        return 0  # libnfs 4.0 loses count of its requests by a close: the server then answers NFS4ERR_BAD_SEQID

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return self._do("fsync", fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def chmod(self, path: str, mode: int) -> int:
        if self.getattr(path)["st_mode"] & 0o40000:
            return 0  # libnfs 4.0 opens what it changes, which no directory can be
        return self._do("chmod", os.fsencode(path), mode)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return 0

    def link(self, target: str, source: str) -> int:
        return self._do("link", os.fsencode(source), os.fsencode(target))

    def rename(self, old: str, new: str) -> int:
        return self._do("rename", os.fsencode(old), os.fsencode(new))

    def statfs(self, path: str) -> dict[str, int]:
        raise mfusepy.FuseOSError(errno.ENOSYS)


if __name__ == "__main__":
    mfusepy.FUSE(
        Client(sys.argv[1]),
        sys.argv[2],
        foreground=True,
        nothreads=True,
        use_ino=True,
        subtype="nfs",
        fsname=f"127.0.0.1:{sys.argv[1]}",
    )
