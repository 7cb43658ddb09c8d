"""What a fenced holder keeps beside its lock file: the fencing token, and who it is."""

from __future__ import annotations

import os
import time

from sharedvol.errors import LockFileError
from sharedvol.locks.file import linux
from sharedvol.locks.file.holder_file import HolderFile
from sharedvol.locks.file.pinned import TICK, PinnedDirectory
from sharedvol.locks.file.token_file import TokenFile


class FencingFiles:
    """The token and the record of one hold.

    Args:
        path: the lock file.
        mode: permission bits of files that are created here.
        purpose: what the holder says that it is for.
        fenced: whether there are tokens; else only the record.
    """

    def __init__(self, path: str, mode: int, purpose: str, *, fenced: bool = True) -> None:
        self._path = path
        self._directory = PinnedDirectory(os.path.dirname(path))
        self._tokens = TokenFile(path, mode) if fenced else None
        self._record = HolderFile(path, mode, purpose)
        self._looked = -TICK  # when the record's name was looked at last, by the monotonic clock
        self.token: int | None = None

    def enter(self) -> None:
        """The lock is ours: take the next token, and say who holds.

        Raises:
            LockFileError: there is no token to be had. To say who holds may fail in silence.
        """
        calm = self._directory.is_calm()
        token = None if self._tokens is None else self._tokens.next(calm=calm)
        self.token = token
        if calm:
            self._record.write(token, look=False)
            return
        # The record is only for people: where the directory never rests, its name is not looked at every time.
        now = time.monotonic_ns()
        look = self._directory.is_due or now - self._looked > TICK
        if look:
            self._looked = now
        if self._record.write(token, look=look) and look:
            self._directory.looked()

    def leave(self) -> None:
        """Say no more who holds; the lock is still ours, but not for long."""
        self._record.drop()

    def is_surely_ours(self, fd: int, identity: object) -> bool:
        """Whether all is as it was at `enter`, at little cost. If not, `why_lost` tells what it means.

        A fenced lock file that was moved aside is not noticed here, but by `why_lost`; whoever has taken the lock
        meanwhile has taken a token, too.
        """
        if self._tokens is None:
            return linux.why_lost(fd, self._path, identity) is None
        return linux.is_linked(fd, identity) and self._tokens.is_unchanged()

    def why_lost(self) -> str | None:
        """In words, if the token file has a token of another; None otherwise. Any thread may ask."""
        token = self.token
        if self._tokens is None or self._tokens.is_as_left():
            return None
        try:
            found = self._tokens.look()
        except LockFileError as error:
            return str(error)
        if found is None or found == token:
            return None  # none: somebody deleted it, and nobody has taken a token since
        return f"its fencing file has token {found}, not {token}, which was given to this holder"

    def close(self) -> None:
        """Close all of it."""
        self._directory.close()
        if self._tokens is not None:
            self._tokens.close()
        self._record.close()
