"""File systems to examine, true and lying ones, each mounted where only the examination sees it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharedvol.doctor import Report, examination, examine
from support.installed import DIE_WITH_US, FUSE_MISSING
from support.processes import wait_until
from support.torture.filesystems import LoopFileSystem, Places, mount
from support.torture.isolated import NotHere, isolated, libc

Look = Callable[[Path], Path]
"""Makes something in an empty directory, and returns what is to be examined."""

LIMIT = 60.0
PATIENCE = 5.0
LYING = Path(__file__).with_name("lying.py")
_BIND, _REMOUNT, _READ_ONLY = 0x1000, 0x20, 1


def verdicts(report: Report) -> dict[str, str]:
    """By id."""
    return {finding.id: finding.verdict for finding in report.findings}


def not_ok(report: Report) -> dict[str, str]:
    """The verdicts that are not ok, by id."""
    return {id: verdict for id, verdict in verdicts(report).items() if verdict != "ok"}


def only(*ids: str) -> None:
    """In an isolated process: make no other experiments than those whose ids begin so."""
    chosen = tuple(one for one in examination.EXPERIMENTS if one.id.startswith(ids))
    assert chosen
    examination.EXPERIMENTS = chosen  # type: ignore[misc]


def examined(place: Path, look: Look, **options: Any) -> tuple[Report, list[str]]:
    """What the doctor finds in what ``look`` mounts at ``place``, and what it leaves there."""

    def work() -> tuple[Report, list[str]]:
        directory = look(place)
        before = set(os.listdir(directory))
        report = examine(str(directory), **{"patience": PATIENCE, **options})
        return report, sorted(set(os.listdir(directory)) - before)

    report, left = isolated(work, LIMIT)
    return report, left


def on(kind: str) -> Look:
    """A file system of that kind of `torture.filesystems.KINDS`."""
    return lambda place: Places(place).on(kind)


def small_tmpfs(options: str) -> Look:
    def look(place: Path) -> Path:
        mount("tmpfs", place, "tmpfs", options)
        return place

    return look


def read_only(place: Path) -> Path:
    _mount_flags(str(place), place, _BIND)
    _mount_flags(str(place), place, _BIND | _REMOUNT | _READ_ONLY)
    return place


def with_mount_below(place: Path) -> Path:
    (place / "results").mkdir()
    (place / "logs").mkdir()
    mount("tmpfs", place / "results", "tmpfs")
    only("owner.")
    return place


def open_to_all(place: Path) -> Path:
    """Also for the umask, which is the opposite."""
    place.chmod(0o777)
    os.umask(0o077)
    only("owner.")
    return place


def with_foreign_files(place: Path) -> Path:
    """Another user's directory, for a root without capabilities, as containers' often is."""
    (place / "theirs").touch()
    for path in (place / "theirs", place):
        os.chown(path, 65534, 65534)
    place.chmod(0o755)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: processes that are started have none
    return place


def no_inotify(place: Path) -> Path:
    """A user namespace whose limit is reached, see namespaces(7) and /proc/sys/user in proc_sys_user(5)."""
    if libc.unshare(0x10000000) != 0:  # CLONE_NEWUSER
        raise NotHere("no user namespaces")
    Path("/proc/self/uid_map").write_text("0 0 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text("0 0 1")
    Path("/proc/sys/user/max_inotify_instances").write_text("0")
    only("events.")
    return place


def synchronous(place: Path) -> Path:
    file_system = LoopFileSystem("ext4", place / "ext4")
    _mount_flags("none", file_system.path, _REMOUNT | 16)  # MS_SYNCHRONOUS
    _KEPT.append(file_system)
    only("durable.")
    return file_system.path


_KEPT: list[object] = []  # until the isolated process ends


def _mount_flags(source: str, target: Path, flags: int) -> None:
    if libc.mount(source.encode(), os.fsencode(target), b"none", ctypes.c_ulong(flags), None) != 0:
        raise NotHere(f"cannot be mounted: {os.strerror(ctypes.get_errno())}")


def lying(variant: str, wait: float = 0.0) -> Look:
    """A file system in user space, see lying.py; ``back`` beside its mountpoint is where it keeps its files.

    Args:
        variant: its class there.
        wait: seconds that its calls hang.
    """

    def look(place: Path) -> Path:
        if variant == "clings":  # slow: each hang is waited for
            only("locks.families", "locks.wake", "locks.kill", "durable.", "data.")
        if variant == "forgets":
            only("names.", "publish.visible")
        (place / "back").mkdir()
        return mount_lying(place / "back", place / "front", variant, wait)

    return look


def mount_lying(back: Path, front: Path, variant: str = "honest", wait: float = 0.0, *subtype: str) -> Path:
    """Mount a file system of lying.py, until the isolated process ends.

    Raises:
        NotHere: this machine has no FUSE.
    """
    return mount_fuse(front, [sys.executable, str(LYING), variant, str(back), str(front), str(wait), *subtype])


def mount_fuse(front: Path, command: list[str]) -> Path:
    """Make a mount point, and mount the file system of a program there until the isolated process ends.

    Raises:
        NotHere: this machine has no FUSE.
    """
    if not Path("/dev/fuse").exists():
        raise NotHere(f"{FUSE_MISSING}: no /dev/fuse")
    if importlib.util.find_spec("mfusepy") is None:
        raise NotHere(f"{FUSE_MISSING}: no mfusepy")
    front.mkdir()
    before = front.stat().st_dev
    daemon = subprocess.Popen([*DIE_WITH_US, *command], stderr=subprocess.PIPE, text=True)
    _KEPT.append(daemon)
    try:
        wait_until(lambda: daemon.poll() is not None or front.stat().st_dev != before, "the mount")
    finally:
        if daemon.poll() is not None:
            assert daemon.stderr is not None
            raise NotHere(f"{FUSE_MISSING}: {daemon.stderr.read()[-300:]}")
    return front


def daemons(place: Path) -> list[str]:
    """The processes whose command lines name ``place``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(place) in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found
