"""The other processes of this replica, one of which may hold the replica's place on the volume.

A server with several workers is one replica. If its master or another worker is a member, the replica is alive and
keeps its slot, whether or not this process has joined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Final

from sharedvol.integrations.process import start_thread

_JOIN_SECONDS: Final = 2.0  # a worker waits so long for its own place if another process of the replica has one
_RETRY_SECONDS: Final = (1.0, 30.0)  # the first and the longest pause before the next attempt to join

_PLACE: Final = re.compile(r"/\.replicas/(names|slots)/([^/]+)\.lock(?: \(deleted\))?")


_log = logging.getLogger(__name__)


def join_later(join: Callable[[], object], path: str, ended: threading.Event) -> None:
    """Join a volume in the background, and retry until it succeeds. Return within two seconds in any case.

    Args:
        join: joins the volume.
        path: the volume's path, for the log.
        ended: set when the service has stopped.
    """
    tried = threading.Event()

    def run() -> None:
        pause, longest = _RETRY_SECONDS
        while not ended.is_set():
            try:
                join()
                break
            except Exception as error:
                _log.warning(
                    "cannot join volume %r: %s; this process serves all the same, because another one of this replica "
                    "is a member; it tries again in %g s",
                    path,
                    error,
                    pause,
                )
            tried.set()
            ended.wait(pause)
            pause = min(2 * pause, longest)
        tried.set()

    start_thread(run, "join")
    tried.wait(_JOIN_SECONDS)


def slot_of_family(name: str) -> int | None:
    """Return the slot that the parent of this process, or another child of it, holds for a replica.

    The kernel reports the locks of their open files (proc_pid_fdinfo(5)), even while the volume cannot be read.

    Args:
        name: the name of the replica.

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
    """Yield the names and slots whose locks a process holds."""
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
