"""The HTTP server, in a thread of its own beside the service's."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sharedvol.errors import describe
from sharedvol_sidecar.board import Board
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.web.address import HostRule, format_address
from sharedvol_sidecar.web.app import status_app

CONNECTIONS = 100
"""At once; more are answered by 503."""

PATIENCE = 10.0
"""Seconds in which a client has to send a request and take the answer; else the connection is cut."""

_KEEP_ALIVE = 5  # seconds that a connection may be idle between requests: less than PATIENCE
_LARGEST_HEAD = 16_384
_STOP = 3.0


class Server:
    """Answers for a board from `start` to `stop`, on a daemon thread that cannot keep the process from its end.

    It leaves signals to the main thread. The port is closed to other hosts unless ``host`` says otherwise.

    Args:
        board: what is told.
        host: an address, or a name of one; of a name with several, the first.
        port: 0 lets the kernel choose.
        allowed_hosts: names in the ``Host`` of requests that a server on a loopback address answers too, see
            `HostRule`.
        patience: seconds that a client may take.
    """

    def __init__(
        self, board: Board, host: str, port: int, *, allowed_hosts: tuple[str, ...] = (), patience: float = PATIENCE
    ) -> None:
        self._board, self._host, self._port = board, host, port
        self._allowed_hosts, self._patience = allowed_hosts, patience
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._relay = _ToStructlog(logging.ERROR)
        self.address: tuple[str, int] | None = None
        """Where it listens, as `start` found it."""

    @property
    def url(self) -> str:
        """The page's address, once it was started."""
        assert self.address is not None, "start() first"
        return f"http://{format_address(*self.address)}/"

    def start(self) -> None:
        """Listen; when this returns, clients can connect.

        Raises:
            ConfigError: the address is taken, or not of this host; in words.
        """
        listener = self._listen()
        bound = listener.getsockname()
        self.address = (bound[0], bound[1])
        hosts = HostRule(bound[0], (self._host, *self._allowed_hosts))
        config = uvicorn.Config(
            status_app(self._board, hosts),
            http=_protocol(self._patience),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_LARGEST_HEAD,
        )
        # Its warnings are of what clients send: not worth a line each. Its errors are ours.
        logging.getLogger("uvicorn").addHandler(self._relay)
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([listener],), name="sharedvol-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port and end the thread; takes at most three seconds, whatever clients do."""
        if self._uvicorn is None or self._thread is None:
            return
        self._uvicorn.should_exit = True
        self._thread.join(_STOP)
        logging.getLogger("uvicorn").removeHandler(self._relay)
        self._uvicorn = self._thread = None

    def _listen(self) -> socket.socket:
        where = format_address(self._host, self._port)
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return _listener(found[0])
        except socket.gaierror as error:
            reason = f"no such host: {error.strerror}"
        except OSError as error:
            reason = describe(error)
        raise ConfigError(f"cannot listen on {where}: {reason}; choose another address with --listen, or --listen off")


def _listener(found: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = found
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        # Not later, by uvicorn: two sockets can be bound to one port while neither of them listens.
        made.listen(CONNECTIONS)
    except BaseException:
        made.close()
        raise
    return made


def _protocol(patience: float) -> type[H11Protocol]:
    """HTTP/1.1 for clients that get on: one that sends or takes nothing would hold its place for ever."""

    class Impatient(H11Protocol):
        _answers = 0
        _next_look: asyncio.TimerHandle

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as theirs
            super().connection_made(transport)
            self._next_look = self.loop.call_later(patience, self._look, 0)

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_look.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._answers += 1
            super().on_response_complete()

        def _look(self, answers: int) -> None:
            # One that is closing has an answer to send that is not taken.
            if self._answers == answers or self.transport.is_closing():
                self.transport.abort()
            else:
                self._next_look = self.loop.call_later(patience, self._look, self._answers)

    return Impatient


class _ToStructlog(logging.Handler):
    """What the server says, as lines of the service's log. That it has a handler keeps the rest quiet."""

    def emit(self, record: logging.LogRecord) -> None:
        detail: dict[str, Any] = {"detail": record.getMessage().strip()}
        if record.exc_info and record.exc_info[1] is not None:
            detail["error"] = repr(record.exc_info[1])
        structlog.get_logger().error("http", **detail)
