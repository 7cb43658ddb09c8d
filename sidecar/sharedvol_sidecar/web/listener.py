"""The socket that the HTTP server listens on. It never has more connections open than it was given."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REFUSED: Final = 64  # connections that are closed before the event loop gets its turn
_PAUSE: Final = 0.05  # seconds


class Listener(socket.socket):
    """A listening socket that closes connections as soon as it accepts them where there is no place for one more.

    An event loop calls `accept` until nothing is left, so it must return at some time. Nor may it raise for want of
    descriptors: asyncio would log that once for each connection that waits.

    Args:
        args: as of `socket.socket`.
        most: how many connections may be open at once.
        make_room: closes one that is of no use, soon, and returns whether there is such a one.
        options: as of `socket.socket`.
    """

    def __init__(self, *args: Any, most: int, make_room: Callable[[], bool], **options: Any) -> None:
        super().__init__(*args, **options)
        self._most, self._make_room = most, make_room
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that has a place.

        Raises:
            BlockingIOError: there is none now.
        """
        for _ in range(_REFUSED):
            full = len(self._open()) >= self._most
            if full and self._has_next() and self._make_room():
                break  # its place is free when the event loop calls again
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                time.sleep(_PAUSE)  # the connection stays in the queue: without a pause the loop would spin
                break
            if not full:
                self._accepted.append(connection)
                return connection, address
            connection.close()
        raise BlockingIOError(errno.EAGAIN, "no connection now")

    def _has_next(self) -> bool:
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(0))

    def _open(self) -> list[socket.socket]:
        self._accepted = [one for one in self._accepted if one.fileno() >= 0]
        return self._accepted
