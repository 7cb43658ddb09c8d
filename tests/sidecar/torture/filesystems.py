"""File systems of one's own, in the mount namespace of `isolated`: made, cut off as by a power cut, mounted again."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from torture.isolated import NotHere, libc

LOOP_KINDS = ("ext4", "xfs", "btrfs")
KINDS = ("machine", "tmpfs", *LOOP_KINDS, "overlay")

_MEGABYTES = {"ext4": 64, "xfs": 300, "btrfs": 128}  # near the smallest that mkfs makes
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # LOOP_CTL_GET_FREE and LOOP_CONFIGURE of linux/loop.h
_AUTOCLEAR, _FLAGS_AT, _CONFIG_SIZE = 4, 60, 304
_TRIES = 50
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN: _IOR('X', 125, __u32)

LOG_FLUSHED, LOG_LOST = 1, 2
"""How a power cut leaves the journal: its last transactions written, with what they name maybe not; or lost."""


class LoopFileSystem:
    """A file system in memory behind a loop device, which goes with this process.

    Args:
        kind: of `LOOP_KINDS`.
        path: where to mount it; made.

    Raises:
        NotHere: this machine does not allow it.
    """

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path
        with_sbin = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        make = shutil.which(_MAKE[kind][0], path=with_sbin)
        if make is None:
            raise NotHere(f"no {_MAKE[kind][0]}: see scripts/install-filesystems")
        self._device = _loop_device(_MEGABYTES[kind] << 20)
        made = subprocess.run(
            [make, *_MAKE[kind][1:], self._device.path], capture_output=True, text=True, timeout=60, check=False
        )
        if made.returncode != 0:
            raise NotHere(f"{make} fails: {made.stderr.strip()}")
        path.mkdir(parents=True)
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        mount(self._device.path, self.path, self.kind)

    def unmount(self) -> None:
        """Unmount it: nothing may be open on it."""
        if libc.umount2(os.fsencode(self.path), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"unmount: {os.strerror(number)}", str(self.path))

    def cut_power(self, journal: int) -> None:
        """From now on nothing reaches the disk. `unmount` and `mount` bring back what did.

        Args:
            journal: `LOG_FLUSHED` or `LOG_LOST`.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("=I", journal))
        except OSError as error:
            raise NotHere(f"{self.kind} cannot be shut down: {error}") from None
        finally:
            os.close(fd)


class Places:
    """Directories on file systems of a kind, made when first asked for.

    Args:
        top: an empty directory of the machine's file system.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._known: dict[str, Path] = {}

    def on(self, kind: str) -> Path:
        """A directory on a file system of that kind of `KINDS`, the same for each call.

        Raises:
            NotHere: this machine does not allow it.
        """
        if kind not in self._known:
            self._known[kind] = self._make(kind, self._top / kind)
        return self._known[kind]

    def _make(self, kind: str, path: Path) -> Path:
        if kind == "machine":
            path.mkdir()
        elif kind == "tmpfs":
            path.mkdir()
            mount("tmpfs", path, "tmpfs")
        elif kind == "overlay":
            below = self.on("ext4") / "overlay"
            for name in ("lower", "upper", "work"):
                (below / name).mkdir(parents=True)
            path.mkdir()
            mount("overlay", path, "overlay", f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work")
        else:
            LoopFileSystem(kind, path)
        return path


def mount(source: str, target: Path, kind: str, data: str = "") -> None:
    """Call mount(2).

    Raises:
        NotHere: it is not allowed, or the kernel does not have it.
    """
    if libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(0), data.encode()) != 0:
        number = ctypes.get_errno()
        raise NotHere(f"{kind} cannot be mounted: {os.strerror(number)}")


class _Device:
    """A loop device, which the kernel frees when the last mount and descriptor of it are gone."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self._fd = path, fd

    def __del__(self) -> None:
        os.close(self._fd)


def _loop_device(size: int) -> _Device:
    """A loop device over that many bytes of memory."""
    store = os.memfd_create(f"sharedvol-{os.urandom(8).hex()}")  # mkfs.btrfs takes equal names for one store
    os.truncate(store, size)
    try:
        with contextlib.ExitStack() as stack:
            control = os.open("/dev/loop-control", os.O_RDWR)
            stack.callback(os.close, control)
            for _ in range(_TRIES):
                path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                config = bytearray(_CONFIG_SIZE)
                struct.pack_into("=I", config, 0, store)
                struct.pack_into("=I", config, _FLAGS_AT, _AUTOCLEAR)
                try:
                    fcntl.ioctl(fd, _CONFIGURE, bytes(config))
                except OSError:
                    os.close(fd)  # another process took it since
                else:
                    return _Device(path, fd)
    except OSError as error:
        raise NotHere(f"no loop devices: {error}") from None
    finally:
        os.close(store)
    raise NotHere(f"no loop device is free after {_TRIES} tries")
