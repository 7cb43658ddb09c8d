"""The names of live copies."""

from __future__ import annotations

import os

from sharedvol.paths import MAX_NAME_BYTES
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.template import Template
from sharedvol_sidecar.follow.store import FollowedLog, FollowState
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.layout import LIVE


class LiveNames:
    """Names the live copies of one destination, and finds them there.

    Args:
        destination: where they are.
        template: the final names.
    """

    def __init__(self, destination: Destination, template: Template) -> None:
        self._destination, self._template = destination, template

    def new_path(self, id: str, state: FollowState, generation: int) -> str:
        """Return the path of a new live copy. Its directory may have another name than the template's."""
        above = self._template.target(state.origin, state.day).rpartition("/")[0]
        self._destination.begin()
        actual = self._destination.actual(above)
        name = self._name(id, state, generation)
        return f"{actual}/{name}" if actual else name

    def _name(self, id: str, state: FollowState, generation: int) -> str:
        name = self._template.target(state.origin, state.day).rpartition("/")[2]
        tail = os.fsencode(f"~{id}{f'.{generation}' if generation else ''}{LIVE}")
        return os.fsdecode(os.fsencode(name)[: MAX_NAME_BYTES - len(tail)] + tail)

    def final(self, log: FollowedLog) -> str:
        """Return the final name of a live copy, which is in the same directory.

        So a sidecar with another template finds, by inode, the name that a sidecar which died had given it.
        """
        above, slash, live = log.state.live.rpartition("/")
        if live == self._name(log.id, log.state, log.state.generation):
            name = self._template.target(log.state.origin, log.state.day).rpartition("/")[2]
        else:
            name = live.rpartition(f"~{log.id}")[0]
        return above + slash + name

    def locate(self, path: str) -> tuple[Directory | None, str]:
        """Open the directory of a live copy. Return it, or None where it is missing, and the name in it."""
        *parents, name = path.split("/")
        directory = self._destination.root
        try:
            for parent in parents:
                directory = directory.open(parent)
        except (FileNotFoundError, NotADirectoryError):
            return None, name
        return directory, name


def claim_path(log: FollowedLog) -> str:
    """Return what replaces the path of a claim when a live copy is moved to its final name."""
    return f"follow/{log.id}.{log.state.generation}"


def name_of(log: FollowedLog) -> str:
    """Return the live copy's name in its directory."""
    return log.state.live.rpartition("/")[2]
