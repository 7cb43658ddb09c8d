"""Notes on live copies that are sealed: they are over, and get their final names or have them already.

A note is written before a copy gets its final name. It is removed after the log's record names another copy or is gone.
So every sidecar can tell what one that was killed, or whose catalog or disk failed, had begun:

- Where there is a note, no sidecar writes the copy or makes it again. A missing copy has its final name.
- The copy of an earlier generation than the record's waits for its final name, or for its row in the catalog.

One small file next to the log's record: ``.sharedvol/follow/<spool>/<identity>.<generation>.seal``. It holds the record
as it was, and whether the log has ended. Only the sidecar that holds the lock on the record's unit writes it; where no
record is of that generation, the lock on the unit that the note names.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from sharedvol import publish
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.marks import is_watched
from sharedvol_sidecar.follow.store import MAX_STATE, SEAL, FollowedLog, FollowState, FollowStore
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import PRIVATE


@dataclass(frozen=True, slots=True)
class Seal:
    """What a note says.

    Attributes:
        state: the log's record as it was.
        ended: whether the log has ended; else it was cut, and continues in the next generation.
    """

    state: FollowState
    ended: bool


class Seals:
    """The notes of one spool's logs.

    Args:
        directory: where they are, next to the records; stays the caller's.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def of(self, log: FollowedLog) -> Seal | None:
        """Return the note on the copy that a log's record names, or None. Call it with the lock on the log's unit."""
        return self.read(log.id, log.state.generation)

    def read(self, id: str, generation: int) -> Seal | None:
        """Read a note; None where there is none that can be read."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(_name(id, generation), flags, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(os.read(fd, MAX_STATE))
            return Seal(FollowState(**entry["state"]), bool(entry["ended"]))
        except (ValueError, TypeError, KeyError):
            return None
        finally:
            os.close(fd)

    def begin(self, log: FollowedLog, ended: bool) -> None:
        """Note, durably, that a log's copy is about to get its final name.

        Raises:
            OSError: it cannot be written; the copy must not be named then.
        """
        seal = Seal(log.state, ended)
        if self.of(log) != seal:
            path = f"/proc/self/fd/{self._directory.fd}/{_name(log.id, log.state.generation)}"
            with publish(path, replace=True) as file:
                file.write(json.dumps(asdict(seal)))

    def remove(self, log: FollowedLog) -> None:
        """Remove the note on a copy: it has its final name and is recorded no more, or is followed again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_name(log.id, log.state.generation), dir_fd=self._directory.fd)

    def free(self, id: str, generation: int) -> int:
        """Return the first generation from this one on that has no note, so that its copy is a new one."""
        while self._directory.inode(_name(id, generation)) is not None:
            generation += 1
        return generation


class RecordedCopies:
    """The live copies that the records and notes of all spools name."""

    def recorded(self, root: Directory) -> set[str] | None:
        """Return the paths of the live copies that records and notes name; None if these cannot be read.

        Args:
            root: the destination's root.
        """
        found: set[str] = set()
        try:
            above = root.open(PRIVATE).open("follow")
            for spool_id in os.listdir(above.fd):
                directory = above.open(spool_id)
                # Damaged records name no live copy; the sidecar that follows the log reports them.
                records = FollowStore(directory, Events())
                found.update(log.state.live for log in records.logs.values())
                # Listed after the records are read: a note is there before a record ceases to name its copy.
                seals = Seals(directory)
                notes = [seals.read(*note) for note in parse(os.listdir(directory.fd))]
                found.update(note.state.live for note in notes if note is not None)
        except FileNotFoundError:
            return found
        except OSError:
            return None
        return found

    def is_watched(self, fd: int) -> bool:
        """Return whether a running sidecar sees or reads the log of a live copy that is open here."""
        return is_watched(fd)


def parse(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the log's id and the generation of each note among these names, the oldest of a log first."""
    found = []
    for name in names:
        if not name.endswith(SEAL):
            continue
        id, _, generation = name.removesuffix(SEAL).rpartition(".")
        if id and generation.isascii() and generation.isdecimal():
            found.append((id, int(generation)))
    yield from sorted(found)


def _name(id: str, generation: int) -> str:
    return f"{id}.{generation}{SEAL}"
