"""The files of a fenced lock next to its lock file: the fencing token and the holder."""

from __future__ import annotations

import os
import time

from sharedvol.errors import LockFileError
from sharedvol.locks.file import linux
from sharedvol.locks.file.holder_file import HolderFile
from sharedvol.locks.file.pinned import TICK, PinnedDirectory
from sharedvol.locks.file.token_file import TokenFile


class FencingFiles:
    """The token and the holder file of one hold.

    Args:
        path: the lock file.
        mode: permission bits of files that are created here.
        purpose: what the lock is held for.
        fenced: whether there are tokens. Otherwise only the holder file is used.
    """

    def __init__(self, path: str, mode: int, purpose: str, *, fenced: bool = True) -> None:
        self._path = path
        self._directory = PinnedDirectory(os.path.dirname(path))
        self._tokens = TokenFile(path, mode) if fenced else None
        self._record = HolderFile(path, mode, purpose)
        self._looked = -TICK  # when the name of the holder file was checked last, by the monotonic clock
        self.token: int | None = None

    def enter(self) -> None:
        """Draw the next token and write the holder file, under the lock.

        Raises:
            LockFileError: no token can be drawn. A failure to write the holder file is ignored.
        """
        calm = self._directory.is_calm()
        token = None if self._tokens is None else self._tokens.next(calm=calm)
        self.token = token
        if calm:
            self._record.write(token, look=False)
            return
        # The holder file is only for display, so its name is not checked each time if the directory changes often.
        now = time.monotonic_ns()
        look = self._directory.is_due or now - self._looked > TICK
        if look:
            self._looked = now
        if self._record.write(token, look=look) and look:
            self._directory.looked()

    def leave(self) -> None:
        """Unlock the holder file, shortly before the lock is released."""
        self._record.drop()

    def is_surely_ours(self, fd: int, identity: object) -> bool:
        """Return whether nothing has changed since `enter`, at little cost. If not, call `why_lost` for the reason.

        This does not detect a fenced lock file that was moved aside, but a process that has taken the lock since then
        has drawn a token as well.
        """
        if self._tokens is None:
            return linux.why_lost(fd, self._path, identity) is None
        return linux.is_linked(fd, identity) and self._tokens.is_unchanged()

    def why_lost(self) -> str | None:
        """Return the reason, in words, if the token file has another holder's token. Any thread may call this."""
        token = self.token
        if self._tokens is None or self._tokens.is_as_left():
            return None
        try:
            found = self._tokens.look()
        except LockFileError as error:
            return str(error)
        if found is None or found == token:
            return None  # the file was deleted, and no token was drawn since
        return f"its fencing file has token {found}, not {token}, which was given to this holder"

    def close(self) -> None:
        """Close all files."""
        self._directory.close()
        if self._tokens is not None:
            self._tokens.close()
        self._record.close()
