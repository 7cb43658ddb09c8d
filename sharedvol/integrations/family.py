"""The other processes of this replica: whether one of them holds the replica's place on the volume.

A server with several workers is one replica. Where its master or another worker is a member, the replica is alive and
keeps its slot, whether this process has joined or not.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

_PLACE: Final = re.compile(r"/\.replicas/(names|slots)/([^/]+)\.lock(?: \(deleted\))?")


def slot_of_family(name: str) -> int | None:
    """Return the slot that the parent of this process, or another child of it, holds for a replica.

    The kernel says so by the locks of their open files (proc_pid_fdinfo(5)), also while the volume cannot be read.

    Args:
        name: of the replica.

    Returns:
        None if none of them is a member, or if they cannot be examined.
    """
    for pid in _family():
        held = dict(_places(pid))
        slot = held.get("slots", "")
        if held.get("names") == name and slot.isdecimal():
            return int(slot)
    return None


def _family() -> Iterator[int]:
    own, parent = os.getpid(), os.getppid()
    if parent > 0:
        yield parent
    for entry in _listed("/proc"):
        if entry.isdecimal() and int(entry) not in (own, parent) and _parent_of(entry) == parent:
            yield int(entry)


def _parent_of(pid: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])  # the name before it may hold anything
    return None


def _places(pid: int) -> Iterator[tuple[str, str]]:
    """The names and slots whose locks a process holds."""
    for fd in _listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found = _PLACE.search(os.readlink(f"/proc/{pid}/fd/{fd}"))
            if found is None:
                continue
            with open(f"/proc/{pid}/fdinfo/{fd}", errors="replace") as file:
                if "\nlock:" in file.read():
                    yield found[1], found[2]


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
