"""Locks on a real NFS server, reached by two mounts of a client in user space. Part of ``make torture``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from ctypes.util import find_library
from pathlib import Path

import pytest
from support.doctor.doctor_scenes import mount_fuse
from support.installed import DIE_WITH_US
from support.processes import LIMIT, Child, wait_until
from support.torture.isolated import NotHere, isolated, libc

from sharedvol import FileLock, NetworkFileSystemError, NetworkFileSystemWarning, Volume

CLIENT = Path(__file__).parents[1] / "support" / "doctor" / "libnfs_fuse.py"
SETTINGS = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 2049; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {top}/recovery; Only_Numeric_Owners = true; }}
EXPORT {{
    Export_Id = 1; Path = {top}/export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
    Transports = TCP; Protocols = 4; FSAL {{ Name = VFS; }}
}}
"""

pytestmark = pytest.mark.skipif(os.environ.get("SHAREDVOL_TORTURE") != "all", reason="a part of make torture")


def serve(top: Path) -> subprocess.Popen[bytes]:
    """In an isolated process: NFS-Ganesha in a network of its own.

    Raises:
        NotHere: it is not installed, or may not run.
    """
    server = shutil.which("ganesha.nfsd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")
    if server is None or find_library("nfs") is None:
        raise NotHere("no NFS-Ganesha or no libnfs: run scripts/install-filesystems nfs")
    if libc.unshare(0x40000000) != 0:  # CLONE_NEWNET
        raise NotHere("no network namespaces")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=LIMIT)
    for name in ("export", "recovery"):
        (top / name).mkdir()
    settings = top / "ganesha.conf"
    settings.write_text(SETTINGS.format(top=top))
    files = ["-f", settings, "-L", top / "log", "-p", top / "pid"]
    running = subprocess.Popen([*DIE_WITH_US, server, "-F", *map(str, files)], stdin=subprocess.DEVNULL)
    wait_until(lambda: running.poll() is not None or b"NFS SERVER INITIALIZED" in log(top), "the NFS server")
    if running.poll() is not None:
        raise NotHere(f"NFS-Ganesha does not run: {log(top)[-300:]!r}")
    return running


def log(top: Path) -> bytes:
    return (top / "log").read_bytes() if (top / "log").exists() else b""


def mount_nfs(place: Path) -> Path:
    """In an isolated process: mount the export by libnfs."""
    return mount_fuse(place, [sys.executable, str(CLIENT), "/export", str(place)])


def test_two_mounts_of_nfs_get_one_lock_and_one_name_at_once_with_a_warning_each(tmp_path: Path) -> None:
    def work() -> tuple[list[str], bool, set[str], int]:
        server = serve(tmp_path)
        fronts = [mount_nfs(tmp_path / name) for name in ("one", "two")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            locks = [FileLock(front / "x.lock", timeout=0) for front in fronts]
            for lock in locks:
                lock.acquire()
            both = all(lock.held for lock in locks)
        (fronts[0] / "volume").mkdir()
        names = {Volume(fronts[0] / "volume", allow_network=True).join("same").name}
        with Child(lambda pipe: pipe.send(Volume(fronts[1] / "volume", allow_network=True).join("same").name)) as child:
            names.add(child.receive())
        refused = 0
        for front in fronts:
            with pytest.raises(NetworkFileSystemError):
                Volume(front / "volume", strict=True).join("other")
            refused += 1
        server.terminate()
        return [str(one.message) for one in caught if one.category is NetworkFileSystemWarning], both, names, refused

    found, both, names, refused = isolated(work, LIMIT)
    assert [text.partition(" (")[0].rpartition(" ")[2] for text in found] == ["fuse.nfs", "fuse.nfs"]
    assert both
    assert names == {"same"}
    assert refused == 2
