"""What is told of a directory by looking at it."""

from __future__ import annotations

from typing import Any

import pytest

from sharedvol.doctor.agent.mounts import parse
from sharedvol.doctor.experiments import mount

ROOT = {"uid": 0, "gid": 0, "capabilities": (1 << 41) - 1}
USER = {"uid": 1000, "gid": 1000, "capabilities": 0}
DEFAULT_CAPABILITIES = 0xA80425FB  # what container engines leave to root: CAP_LEASE is not among them


def mounted(kind: str, point: str = "/shared", options: str = "rw,relatime") -> dict[str, Any]:
    return {"kind": kind, "point": point, "source": "none", "options": options, "uid": 0, "gid": 0, "mode": 0o40755}


@pytest.mark.parametrize(
    ("kind", "point", "verdict"),
    [
        ("ext4", "/shared", "ok"),
        ("btrfs", "/", "ok"),
        ("zfs", "/shared", "ok"),
        ("tmpfs", "/shared", "degraded"),
        ("overlay", "/", "unsafe"),
        ("overlay", "/shared", "degraded"),
        ("nfs4", "/shared", "degraded"),
        ("cifs", "/shared", "degraded"),
        ("virtiofs", "/shared", "degraded"),
        ("fakeowner", "/shared", "degraded"),
        ("9p", "/shared", "degraded"),
        ("fuse.sshfs", "/shared", "degraded"),
        ("vfat", "/shared", "degraded"),
        ("newfs", "/shared", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_each_kind_of_file_system_has_its_verdict(kind: str, point: str, verdict: str) -> None:
    assert mount.kind(mounted(kind, point)).verdict == verdict


@pytest.mark.parametrize(
    ("options", "verdict"),
    [("rw,relatime", "ok"), ("rw,noexec,nosuid", "ok"), ("ro,relatime", "degraded"), ("rw,sync", "degraded")],
)
def test_mount_options_that_matter_are_told(options: str, verdict: str) -> None:
    assert mount.writable(mounted("ext4", options=options)).verdict == verdict


@pytest.mark.parametrize(
    ("mode", "owner", "who", "verdict"),
    [
        (0o755, 0, ROOT, "ok"),
        (0o777, 0, ROOT, "degraded"),
        (0o1777, 0, USER, "degraded"),
        (0o1777, 1000, USER, "ok"),
        (0o1777, 0, ROOT, "ok"),
        (0o2775, 0, USER, "ok"),
        (0o775, 0, USER, "degraded"),
    ],
)
def test_the_directorys_mode_is_judged_for_this_user(mode: int, owner: int, who: dict[str, Any], verdict: str) -> None:
    assert mount.directory({"mode": 0o40000 | mode, "uid": owner, "gid": 0}, who).verdict == verdict


@pytest.mark.parametrize(
    ("foreign", "who", "verdict"),
    [
        (0, USER, "ok"),
        (3, USER, "degraded"),
        (3, ROOT, "ok"),
        (3, {**ROOT, "capabilities": DEFAULT_CAPABILITIES}, "degraded"),
    ],
)
def test_foreign_files_need_capabilities(foreign: int, who: dict[str, Any], verdict: str) -> None:
    found = mount.foreign({"foreign": foreign}, who)
    assert found.verdict == verdict
    assert ("CAP_LEASE" in found.detail) == (verdict == "degraded")


@pytest.mark.parametrize(
    ("total", "free", "verdict"),
    [
        (10**12, 10**11, "ok"),
        (10**12, 10**10, "degraded"),
        (10**9, 9 * 10**7, "degraded"),
        (10**9, 0, "unsafe"),
        (0, 0, "unknown"),
    ],
)
def test_free_space_has_thresholds(total: int, free: int, verdict: str) -> None:
    assert mount.free_bytes({"bytes": total, "free": free}).verdict == verdict


@pytest.mark.parametrize(
    ("total", "free", "verdict"), [(0, 0, "ok"), (100, 50, "ok"), (100, 4, "degraded"), (100, 0, "unsafe")]
)
def test_free_inodes_have_thresholds(total: int, free: int, verdict: str) -> None:
    assert mount.free_inodes({"inodes": total, "free_inodes": free}).verdict == verdict


def test_names_of_subdirectories_are_shown_harmlessly() -> None:
    found = mount.subdirectories({"elsewhere": ["a\x1b[2J"], "deeper": ["/shared/b"]})
    assert found.verdict == "degraded"
    assert "\x1b" not in found.detail


def test_a_line_of_mountinfo_is_taken_apart() -> None:
    text = (
        "36 35 98:0 /mnt1 /my\\040volume rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:29 / /x ro - fuse - rw\n"
        "nonsense\n"
    )
    first, second = parse(text)
    assert first == (36, "/my volume", "rw,noatime", "ext3", "/dev/root", "rw,errors=continue")
    assert second == (37, "/x", "ro", "fuse", "-", "rw")
