"""Files by which two doctors exchange messages, even where neither locks nor events work.

They are in ``.sharedvol-doctor-peer-<name>``, a directory with the mode of the volume. A message is a JSON object in a
file that is written under a hidden name and renamed. A reader polls, and does not trust what it reads.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import Final

from sharedvol.doctor.agent.limits import MOST_BYTES, MOST_TIMES
from sharedvol.doctor.agent.room import DIRECTORY, OPEN, checked_name, listed

OLD: Final = 3600.0
"""Seconds after which an unread message belongs to a dead run."""


class Messages:
    """The steps of a `Warden` that exchange messages with another doctor."""

    _top: int
    _meeting = -1
    _meeting_name = ""

    def meet(self, name: str) -> None:
        """Create or open the directory of that name."""
        self._leave_meeting()
        self._meeting_name, self._put = checked_name(name), set[str]()
        for _ in range(MOST_TIMES):
            try:
                os.mkdir(name, 0o700, dir_fd=self._top)
                made = True
            except FileExistsError:
                made = False
            with contextlib.suppress(FileNotFoundError):  # an earlier run may remove it at this moment
                self._meeting = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._top)
                break
        if made:
            os.fchmod(self._meeting, 0o700 | (os.fstat(self._top).st_mode & 0o777))

    def put(self, name: str, text: str) -> None:
        """Write or replace a message."""
        hidden = f".{checked_name(name)}.{os.urandom(6).hex()}"
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN, 0o600, dir_fd=self._meeting)
        self._put.add(hidden)
        with open(fd, "w", encoding="ascii") as file:
            with contextlib.suppress(OSError):  # the file system may have no modes
                os.fchmod(fd, 0o644)
            file.write(text)
        self._put.add(name)
        os.rename(hidden, name, src_dir_fd=self._meeting, dst_dir_fd=self._meeting)
        self._put.discard(hidden)

    def get(self, name: str) -> str | None:
        """Return a message, or None if it is missing, too large or not a regular file."""
        if name not in self.listing():  # a listing queries the server; a cached lookup may say that the name is missing
            return None
        try:
            fd = os.open(checked_name(name), os.O_RDONLY | OPEN, dir_fd=self._meeting)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        with open(fd, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        return data.decode("ascii", "replace") if len(data) <= MOST_BYTES else None

    def listing(self) -> list[str]:
        """Return the names of all messages."""
        with listed(self._meeting) as entries:
            names = [entry.name for entry, _ in zip(entries, range(1000), strict=False)]
        return [name for name in names if not name.startswith(".")]

    def drop(self, name: str) -> None:
        """Remove a message that this doctor wrote."""
        self._put.discard(name)
        with contextlib.suppress(OSError):
            os.unlink(checked_name(name), dir_fd=self._meeting)

    def _leave_meeting(self) -> None:
        """Remove our messages and those of dead runs, and then the directory if it is empty."""
        if self._meeting < 0:
            return
        now = time.time()
        with contextlib.suppress(OSError), listed(self._meeting) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if entry.name in self._put or (info.st_uid == os.geteuid() and now - info.st_mtime > OLD):
                        os.unlink(entry.name, dir_fd=self._meeting)
        os.close(self._meeting)
        self._meeting = -1
        with contextlib.suppress(OSError):
            os.rmdir(self._meeting_name, dir_fd=self._top)
