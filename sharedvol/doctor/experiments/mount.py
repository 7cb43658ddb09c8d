"""Checks of the directory without experiments: its mount, its owner, its entries, and its free space."""

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


def kind(facts: dict[str, Any]) -> Result:
    """Judge the kind of file system."""
    name, point = str(facts["kind"]), shown(str(facts["point"]))
    if name in _LOCAL:
        return ok(f"{name} at {point}")
    if name in _MEMORY:
        return degraded(f"{name} at {point}: in memory, lost at the next boot")
    if name in ("overlay", "fuse.fuse-overlayfs"):
        if point == "/":
            return unsafe(f"{name}: this is the container's own layer, not a volume: no other container sees it")
        return degraded(f"{name} at {point}: changes in the lower layer, or by another overlay, are not seen")
    if name in NETWORK:
        return degraded(f"{name} at {point}: over the network; use --peer to test it between hosts")
    if name in DESKTOP:
        return degraded(
            f"{name} at {point}: a directory of the machine that runs the virtual one, where two containers "
            "have sometimes held one exclusive lock at once"
        )
    if name == "fuse" or name.startswith("fuse."):
        return degraded(f"{shown(name)} at {point}: a program implements it")
    if name in _FOREIGN:
        return degraded(f"{name} at {point}: lacks features that Linux programs expect")
    return unknown(f"{shown(name) or 'not reported by the kernel'} at {point}: unknown to the doctor")


def writable(facts: dict[str, Any]) -> Result:
    """Judge whether it is mounted for writing. The options noexec, nosuid and nodev do not matter."""
    options = str(facts["options"]).split(",")
    if "ro" in options:
        return degraded("mounted read-only")
    if "sync" in options or "dirsync" in options:
        return degraded("mounted with sync: every write waits for the disk")
    return ok("read-write")


def directory(facts: dict[str, Any], who: dict[str, Any]) -> Result:
    """Judge the directory's mode."""
    mode = stat.S_IMODE(facts["mode"])
    words = f"{mode:#o} of {facts['uid']}:{facts['gid']}"
    if mode & stat.S_ISVTX and who["uid"] not in (0, facts["uid"]):
        return degraded(f"{words}: sticky, so only a file's owner may rename it")
    if mode & 0o002 and not mode & stat.S_ISVTX:
        return degraded(f"{words}: every user may remove and replace every file")
    if mode & 0o022 == 0o020 and not mode & stat.S_ISGID and facts["gid"] != who["gid"]:
        return degraded(f"{words}: for its group, but new files get group {who['gid']}: set the setgid bit")
    return ok(words)


def foreign(survey: dict[str, Any], who: dict[str, Any]) -> Result:
    """Judge whether it holds files of other users, and what this process may do with them."""
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
    """Judge whether all subdirectories are on the same mount."""
    found = [shown(str(one)) for one in (*survey["elsewhere"], *survey["deeper"])]
    if found:
        names = sorted({os.path.basename(one) for one in found})
        return degraded(f"on other mounts: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    return ok("no other mount below")


def free_bytes(space: dict[str, int]) -> Result:
    """Judge the free space."""
    total, free = space["bytes"], space["free"]
    words = f"{_size(free)} of {_size(total)} free"
    if not total:
        return unknown("the file system does not report its size")
    if not free:
        return unsafe(words)
    return degraded(words) if free < _FEW_BYTES or free < total * _FEW else ok(words)


def free_inodes(space: dict[str, int]) -> Result:
    """Judge the free inodes."""
    total, free = space["inodes"], space["free_inodes"]
    if not total:
        return ok("not limited, or not reported")
    if not free:
        return unsafe(f"0 of {total:,} free")
    return (degraded if free < total * _FEW else ok)(f"{free:,} of {total:,} free")


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
