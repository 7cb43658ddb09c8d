"""File systems of one's own, in the mount namespace of `isolated`: made, cut off as by a power cut, mounted again."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from support.torture.isolated import NotHere, libc

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "1024"),
    "ext4_4k": ("mkfs.ext4", "-q", "-F", "-b", "4096"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-b", "size=4096"),
    "xfs_1k": ("mkfs.xfs", "-q", "-f", "-b", "size=1024"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_MEGABYTES = {"ext4": 64, "xfs": 300, "btrfs": 128}  # near the smallest that mkfs makes

LOOP_KINDS = tuple(_MAKE)
"""The kind, and behind a `_` the size of its blocks: with blocks below 4 KiB the catalog has a rollback journal."""

KINDS = ("machine", "tmpfs", *LOOP_KINDS, "overlay", "overlay_4k")

_SMALL = ("-b", "4096", "-N", "1000", "-O", "^has_journal", "-m", "0")  # mke2fs(8)
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
        size: in bytes, without a journal then; None for one that a power cut can be tried on.
        room: in bytes, with a journal; 0 for a small one.
        options: more options for mkfs, instead of those of a size.

    Raises:
        NotHere: this machine does not allow it.
    """

    def __init__(
        self, kind: str, path: Path, size: int | None = None, room: int = 0, options: tuple[str, ...] = ()
    ) -> None:
        self.kind, self.path = kind.partition("_")[0], path
        with_sbin = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        make = shutil.which(_MAKE[kind][0], path=with_sbin)
        if make is None:
            raise NotHere(f"no {_MAKE[kind][0]}: see scripts/install-filesystems")
        self._device = _Device(_store(size or room or _MEGABYTES[self.kind] << 20))
        made = subprocess.run(
            [make, *_MAKE[kind][1:], *(options or _SMALL * (size is not None)), self._device.path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if made.returncode != 0:
            raise NotHere(f"{make} fails: {made.stderr.strip()}")
        path.mkdir(parents=True)
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        mount(self._device.path, self.path, self.kind)

    def cut_power(self, journal: int) -> None:
        """From now on nothing reaches the disk. Then `come_back`.

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
        # The unmount may still write, and the device's cache may hold what never reached the disk.
        self._rescued = _copy(self._device.store)

    def come_back(self) -> None:
        """Mount what had reached the disk when the power was cut. Nothing may be open on it."""
        if libc.umount2(os.fsencode(self.path), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"unmount: {os.strerror(number)}", str(self.path))
        self._device = _Device(self._rescued)
        self.mount()


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
        elif kind.startswith("overlay"):
            below = self.on(kind.replace("overlay", "ext4")) / "overlay"
            for name in ("lower", "upper", "work"):
                (below / name).mkdir(parents=True)
            path.mkdir()
            mount("overlay", path, "overlay", f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work")
        else:
            LoopFileSystem(kind, path)
        return path


def mount(source: str, target: Path, kind: str, data: str = "", flags: int = 0) -> None:
    """Mount a file system.

    Raises:
        NotHere: it is not allowed, or the kernel does not have it.
    """
    if libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        raise NotHere(f"{kind} cannot be mounted: {os.strerror(number)}")


class _Device:
    """A loop device, which the kernel frees when the last mount and descriptor of it are gone.

    Args:
        store: the descriptor of its content, which is closed with it.
    """

    def __init__(self, store: int) -> None:
        self.store, self._fd = store, -1
        try:
            self.path, self._fd = _attach(store)
        except OSError as error:
            raise NotHere(f"no loop devices: {error}") from None

    def __del__(self) -> None:
        os.close(self.store)
        if self._fd >= 0:
            os.close(self._fd)


def _attach(store: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            config = bytearray(_CONFIG_SIZE)
            struct.pack_into("=I", config, 0, store)
            struct.pack_into("=I", config, _FLAGS_AT, _AUTOCLEAR)
            try:
                fcntl.ioctl(fd, _CONFIGURE, bytes(config))
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # another process took it since
                    raise
            else:
                return path, fd
    finally:
        os.close(control)
    raise NotHere(f"no loop device is free after {_TRIES} tries")


def _store(size: int) -> int:
    store = os.memfd_create(f"sharedvol-{os.urandom(8).hex()}")  # mkfs.btrfs takes equal names for one store
    os.truncate(store, size)
    return store


def _copy(store: int) -> int:
    """Another store with the same content."""
    size = os.fstat(store).st_size
    copy = _store(size)
    start = 0
    while True:
        try:
            start = os.lseek(store, start, os.SEEK_DATA)
        except OSError:
            return copy  # only a hole is left
        end = os.lseek(store, start, os.SEEK_HOLE)
        os.lseek(copy, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(copy, store, start, end - start)
