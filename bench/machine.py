"""The machine, and the versions of what is measured. Nothing that names it: no host, no user, no path."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "filelock",
    "portalocker",
    "fasteners",
    "tooz",
    "diskcache",
    "alembic",
    "yoyo-migrations",
    "SQLAlchemy",
    "PyMySQL",
    "matplotlib",
)
_COMMANDS = {"mv": ("mv", "--version"), "rsync": ("rsync", "--version")}
_NUMBER = re.compile(r"\d+(?:\.\d+)+")


def describe(directory: Path) -> dict[str, str]:
    """What a figure depends on, in the order in which a reader wants it.

    Args:
        directory: on the file system that is measured.
    """
    facts = {
        "CPU": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores for the measurement",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {_first(platform.release())}",
        "file system": _file_system(directory),
        "distribution": _distribution(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    facts |= _databases()
    facts |= {name: _said(command) or "not installed" for name, command in _COMMANDS.items()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _first(text: str) -> str:
    """The number of a version: what a distributor appends may name a place."""
    found = _NUMBER.search(text)
    return found[0] if found else "unknown"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _file_system(directory: Path) -> str:
    """The type of the mount with this number in proc_pid_mountinfo(5)."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return "unknown"


def _databases() -> dict[str, str]:
    """Of the servers that the tests start."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from support.installed import NotInstalled, programs

    found = {}
    for flavour, words in (("mariadb", "MariaDB"), ("mysql", "MySQL")):
        try:
            found[words] = _said([*programs(flavour).server, "--version"])
        except NotInstalled:
            found[words] = "not installed"
    return found


def _said(command: Sequence[str]) -> str:
    if not shutil.which(command[0]):
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.search(r"Ver (\d+(?:\.\d+)+)", answer)  # the servers of a database; else the first number
    return found[1] if found else _first(answer)
