"""The directories of dead containers: drained like any other, then removed.

Whether a container is dead the kernel says, by the lock that a replica which joined the volume holds as long
as it lives (`sharedvol.Volume`). Nobody can tell of one that never joined, so its directory stays. Nor can
anybody join while a directory is removed, and what is removed is empty: rmdir(2) refuses anything else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from sharedvol import LockTimeout, SharedVolError, Volume, remove_stale_temporaries
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.scanner import MAX_DEPTH


class Orphans:
    """Removes what dead containers leave in one spool.

    Args:
        spool: its root.
        path: the path of that, for the presence of replicas.
        kinds: the directories that are collected from, by these or by other settings.
        events: receives what was removed, and what cannot be.
    """

    def __init__(self, spool: Directory, path: str, kinds: Callable[[], set[str]], events: Events) -> None:
        self._spool, self._kinds, self._events = spool, kinds, events
        self._collected: set[str] = set()
        # Any process that may write the volume can hold the gate indefinitely, so it is not waited for.
        self.volume = Volume.opened(spool.fd, path, timeout=0.0)

    def remove_if_dead(self, container: str) -> bool:
        """Remove a container's directory if the container is dead and the directory is drained.

        Call it with the container's lock, so that no other sidecar works on it. Return whether it was removed.
        """
        try:
            if self.volume.is_alive(container) is not False:
                return False
            with self.volume.hold_dead(container) as dead:
                return dead and self._remove(container)
        except LockTimeout:
            return False  # somebody joins: the next pass has it
        except SharedVolError as error:
            self._events.orphan_kept(container, f"cannot tell whether it is dead: {error}")
        except OSError as error:
            self._events.orphan_kept(container, f"its container is dead, and it cannot be read: {error}")
        return False

    def _remove(self, container: str) -> bool:
        try:
            directory = self._spool.open(container)
        except OSError:
            return False
        self._collected = self._kinds()
        left = self._empty(directory, "", 0)
        if left is None:
            try:
                os.rmdir(container, dir_fd=self._spool.fd)
            except OSError:
                return False  # somebody put something there since: the next pass has it
            self.volume.forget(container)
            self._events.orphan_removed(container, "its container is dead, and all of it was collected")
            return True
        if left:
            detail = f"its container is dead, and {left!r} in it is not collected: look at it, and remove it"
            self._events.orphan_kept(container, detail)
        return False

    def _empty(self, directory: Directory, path: str, depth: int) -> str | None:
        """Remove the empty directories and dead writers' temporaries below. None if nothing is left.

        Returns:
            The path of something that is never collected; empty if what is left will be.
        """
        with contextlib.suppress(OSError):
            # Their writers are dead with the container. What they hold was never published.
            remove_stale_temporaries(f"/proc/self/fd/{directory.fd}", allow_network=True)
        left: str | None = None
        with os.scandir(directory.fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in found:
            below = f"{path}{name}"
            if is_directory and depth < MAX_DEPTH:
                inside = self._descend(directory, name, below, depth)
                if inside is not None:
                    left = left or inside
            elif below.partition("/")[0] in self._collected and depth > 0 and not name.startswith("."):
                left = left or ""
            else:
                left = left or below
        return left

    def _descend(self, parent: Directory, name: str, path: str, depth: int) -> str | None:
        try:
            inside = self._empty(parent.open(name), f"{path}/", depth + 1)
            if inside is None:
                os.rmdir(name, dir_fd=parent.fd)
        except OSError:
            return ""
        return inside
