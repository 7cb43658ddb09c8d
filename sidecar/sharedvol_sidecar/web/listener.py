"""The socket that the HTTP server listens on. It limits the number of open connections."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REFUSED: Final = 64  # connections that are closed before the event loop continues
_PAUSE: Final = 0.05  # seconds


class Listener(socket.socket):
    """A listening socket that closes new connections when too many are open.

    An event loop calls `accept` until no connection is left, so it must return at some point. It must not raise when
    descriptors run out, because asyncio would log an error for each waiting connection.

    Args:
        args: the arguments of `socket.socket`.
        most: the largest number of open connections.
        make_room: closes an idle connection soon, and returns whether there is one.
        options: the keyword arguments of `socket.socket`.
    """

    def __init__(self, *args: Any, most: int, make_room: Callable[[], bool], **options: Any) -> None:
        super().__init__(*args, **options)
        self._most, self._make_room = most, make_room
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection that is within the limit.

        Raises:
            BlockingIOError: there is no such connection now.
        """
        for _ in range(_REFUSED):
            full = len(self._open()) >= self._most
            if full and self._has_next() and self._make_room():
                break  # a connection is closed before the event loop calls again
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
