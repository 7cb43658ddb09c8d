"""What a directory is mounted from, see proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class Mount(NamedTuple):
    """A line of mountinfo."""

    id: int
    point: str
    options: str
    kind: str
    source: str
    super_options: str


def parse(text: str) -> list[Mount]:
    """All lines of mountinfo."""
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


def _read() -> list[Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def mount_of(fd: int) -> dict[str, str]:
    """The mount of an open directory: its ``point``, ``kind``, ``source`` and ``options``."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        number = next((int(line.split()[1]) for line in file if line.startswith("mnt_id:")), -1)
    mount = next((one for one in _read() if one.id == number), None)
    if mount is None:
        return {"point": "", "kind": "", "source": "", "options": ""}
    options = f"{mount.options},{mount.super_options}"
    return {"point": mount.point, "kind": mount.kind, "source": mount.source, "options": options}


def mounts_below(fd: int) -> list[str]:
    """Where other mounts lie below an open directory."""
    path = os.readlink(f"/proc/self/fd/{fd}").rstrip("/") + "/"
    return sorted({one.point for one in _read() if one.point.startswith(path)})
