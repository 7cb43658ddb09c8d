"""The mount that a file is on, and the file systems whose locks are not reliable. See proc_pid_mountinfo(5)."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

NETWORK: Final = frozenset(
    "acfs afs beegfs ceph cifs coda davfs davfs2 fhgfs gfs gfs2 glusterfs gpfs lustre mvfs ncpfs nfs nfs3 "
    "nfs4 ocfs2 orangefs panfs pvfs2 smb smb2 smb3 smbfs sshfs vxfs wekafs".split()
)
"""File systems that other machines serve or share."""
DESKTOP: Final = frozenset(
    "9p drvfs fakeowner fuse.grpcfuse fuse.osxfs fuse.vmhgfs-fuse hgfs osxfs prl_fs vboxsf virtiofs vmhgfs".split()
)
"""Directories of the host of a virtual machine, such as bind mounts of Docker Desktop."""
_LOCAL_FUSE: Final = frozenset(("fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.squashfuse", "fuse.snapfuse"))
"""File systems that container engines and the system mount. A volume of replicas is never one of these."""

_EMPTY_PATH, _DONT_SYNC = 0x1000, 0x4000  # AT_EMPTY_PATH, AT_STATX_DONT_SYNC: do not query a file server
_MOUNT_ID, _UNIQUE_ID = 0x1000, 0x4000  # STATX_MNT_ID, STATX_MNT_ID_UNIQUE (Linux 6.8)
_STATX_BYTES, _AT = 256, 144  # struct statx, and where stx_mnt_id is in it


class Mount(NamedTuple):
    """A line of mountinfo."""

    id: int
    point: str
    options: str
    kind: str
    source: str
    super_options: str


def is_network(kind: str) -> bool:
    """Return whether two holders may have one lock at once on this kind of file system.

    All of FUSE counts, because a program implements its locks, and mostly the kernel keeps them for one mount alone.
    """
    if kind in NETWORK or kind in DESKTOP or kind == "fuse":
        return True
    return kind.startswith("fuse.") and kind not in _LOCAL_FUSE


def parse(text: str) -> list[Mount]:
    """Parse the text of a mountinfo file."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        left, right = fields.split(), rest.split()
        if len(left) >= 6 and len(right) >= 2:
            options = right[2] if len(right) > 2 else ""
            mounts.append(Mount(int(left[0]), _plain(left[4]), left[5], right[0], _plain(right[1]), options))
    return mounts


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def read_mounts() -> list[Mount]:
    """Return all mounts that this process sees.

    Raises:
        OSError: ``/proc`` is not mounted.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def mount_of(fd: int) -> Mount | None:
    """Return the mount that a descriptor was opened through; None if it was unmounted.

    Raises:
        OSError: ``/proc`` is not mounted.
    """
    number = _mount_id(fd)
    return next((one for one in read_mounts() if one.id == number), None)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("mnt_id:")), -1)


def network_mount(fd: int) -> tuple[Hashable, Mount] | None:
    """Return the mount of a descriptor and a key for it, if it is a network file system; otherwise None.

    The result is cached for each mount. A cached answer costs one system call.
    """
    try:
        key = _key(fd)
        if key not in _known:
            mount = mount_of(fd)
            _known[key] = mount if mount is not None and is_network(mount.kind) else None
    except OSError:
        return None  # /proc is not mounted, so the mount is unknown
    found = _known[key]
    return None if found is None else (key, found)


_known: dict[Hashable, Mount | None] = {}


def _key(fd: int) -> Hashable:
    """Return a key that no other mount has, not even one that is mounted later.

    Before Linux 6.8 a new mount may reuse the number of an old one, so the key includes the device.
    """
    statx = _statx()
    if statx is not None:
        answer = ctypes.create_string_buffer(_STATX_BYTES)
        if statx(fd, b"", _EMPTY_PATH | _DONT_SYNC, _MOUNT_ID | _UNIQUE_ID, answer) == 0:
            (given,) = struct.unpack_from("=I", answer, 0)
            (number,) = struct.unpack_from("=Q", answer, _AT)
            if given & _UNIQUE_ID:
                return int(number)
            if given & _MOUNT_ID:
                return int(number), os.fstat(fd).st_dev
    return _mount_id(fd), os.fstat(fd).st_dev


@functools.cache
def _statx() -> Any:
    """Return statx(2) of the C library, which Python 3.11 lacks; None if the library lacks it as well."""
    return getattr(ctypes.CDLL(None), "statx", None)
