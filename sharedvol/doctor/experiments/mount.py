"""What is told of the directory by looking at it: its mount, its owner, what lies in it, and what is free."""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from sharedvol.doctor.report import Result, degraded, ok, unknown, unsafe
from sharedvol.mounts import DESKTOP, NETWORK
from sharedvol.text import shown

_LOCAL: Final = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "xfs", "zfs"))
_MEMORY: Final = frozenset(("tmpfs", "ramfs"))
_FOREIGN: Final = frozenset(("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus"))

_FEW_BYTES: Final = 100 << 20
_FEW: Final = 0.05  # of the whole

_DAC_OVERRIDE, _FOWNER, _LEASE = 1, 3, 28  # capabilities(7), linux/capability.h


def kind(place: dict[str, Any]) -> Result:
    """What sort of file system it is."""
    name, point = str(place["kind"]), shown(str(place["point"]))
    if name in _LOCAL:
        return ok(f"{name} at {point}")
    if name in _MEMORY:
        return degraded(f"{name} at {point}: in memory, gone at the next boot")
    if name in ("overlay", "fuse.fuse-overlayfs"):
        if point == "/":
            return unsafe(f"{name}: this is the container's own layer and no volume: no other container sees it")
        return degraded(f"{name} at {point}: writers beneath it, or by another overlay, are not seen")
    if name in NETWORK:
        return degraded(f"{name} at {point}: over the network; between hosts only --peer tells")
    if name in DESKTOP:
        return degraded(
            f"{name} at {point}: a directory of the machine around the virtual one, where two containers "
            "have had one exclusive lock at once, not at every try"
        )
    if name == "fuse" or name.startswith("fuse."):
        return degraded(f"{shown(name)} at {point}: what a program makes of it")
    if name in _FOREIGN:
        return degraded(f"{name} at {point}: has not what Linux programs expect")
    return unknown(f"{shown(name) or 'not told by the kernel'} at {point}: not known to the doctor")


def writable(place: dict[str, Any]) -> Result:
    """Mounted for writing, and how; noexec, nosuid and nodev make no difference."""
    options = str(place["options"]).split(",")
    if "ro" in options:
        return degraded("mounted read-only")
    if "sync" in options or "dirsync" in options:
        return degraded("mounted with sync: every write waits for the disk")
    return ok("read-write")


def directory(place: dict[str, Any], who: dict[str, Any]) -> Result:
    """Its mode."""
    mode = stat.S_IMODE(place["mode"])
    words = f"{mode:#o} of {place['uid']}:{place['gid']}"
    if mode & stat.S_ISVTX and who["uid"] not in (0, place["uid"]):
        return degraded(f"{words}: sticky, so only a file's owner may rename it")
    if mode & 0o002 and not mode & stat.S_ISVTX:
        return degraded(f"{words}: every user may remove and replace every file")
    if mode & 0o022 == 0o020 and not mode & stat.S_ISGID and place["gid"] != who["gid"]:
        return degraded(f"{words}: for its group, but what is made gets group {who['gid']}: set the setgid bit")
    return ok(words)


def foreign(survey: dict[str, Any], who: dict[str, Any]) -> Result:
    """Whether it holds other users' files, and what this process may do with them."""
    count, held = int(survey["foreign"]), int(who["capabilities"])
    if not count:
        return ok("none at the top")
    lacks = [
        name
        for name, bit in (("CAP_DAC_OVERRIDE", _DAC_OVERRIDE), ("CAP_FOWNER", _FOWNER), ("CAP_LEASE", _LEASE))
        if not held >> bit & 1
    ]
    if lacks:
        return degraded(f"{count} at the top, and this user (UID {who['uid']}) lacks {', '.join(lacks)}")
    return ok(f"{count} at the top; this process has the capabilities for them")


def subdirectories(survey: dict[str, Any]) -> Result:
    """Whether they are on the same mount."""
    found = [shown(str(one)) for one in (*survey["elsewhere"], *survey["deeper"])]
    if found:
        names = sorted({os.path.basename(one) for one in found})
        return degraded(f"on other mounts: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    return ok("no other mount below")


def free_bytes(space: dict[str, int]) -> Result:
    total, free = space["bytes"], space["free"]
    words = f"{_size(free)} of {_size(total)} free"
    if not total:
        return unknown("the file system does not tell")
    if not free:
        return unsafe(words)
    return degraded(words) if free < _FEW_BYTES or free < total * _FEW else ok(words)


def free_inodes(space: dict[str, int]) -> Result:
    total, free = space["inodes"], space["free_inodes"]
    if not total:
        return ok("not limited, or not told")
    if not free:
        return unsafe(f"0 of {total:,} free")
    return (degraded if free < total * _FEW else ok)(f"{free:,} of {total:,} free")


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
