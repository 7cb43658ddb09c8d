"""The HTTP server, in a thread of its own beside the service's."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sharedvol.errors import describe
from sharedvol_sidecar.config.listen import format_address
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.monitor.service_log import ToStructlog
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.transfer.batch import MAX_CONNECTIONS
from sharedvol_sidecar.web.app import status_app
from sharedvol_sidecar.web.hosts import HostRule
from sharedvol_sidecar.web.listener import Listener

PATIENCE = 10.0
"""Seconds in which a client has to send a request and take the answer; else the connection is cut."""

_KEEP_ALIVE = 5  # seconds that a connection may be idle between requests: less than PATIENCE
_LARGEST_HEAD = 16_384
_BACKLOG = 100  # connections that wait to be accepted
_LOGGERS = ("uvicorn", "asyncio")
_HOARDED = 1.0  # seconds after which an idle connection makes room for another, where no place is left
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
        connections: how many may be open at once. One more takes the place of one that is idle, or is closed.
    """

    def __init__(
        self,
        board: ServiceState,
        host: str,
        port: int,
        *,
        allowed_hosts: tuple[str, ...] = (),
        patience: float = PATIENCE,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._board, self._host, self._port = board, host, port
        self._allowed_hosts, self._patience, self._connections = allowed_hosts, patience, connections
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._relay = ToStructlog("http", logging.ERROR)
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
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_LARGEST_HEAD,
        )
        # Its warnings are of what clients send: not worth a line each. Its errors are ours.
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._relay)
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
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._relay)
        self._uvicorn = self._thread = None

    def _listen(self) -> socket.socket:
        where = format_address(self._host, self._port)
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return self._listener(found[0])
        except socket.gaierror as error:
            reason = f"no such host: {error.strerror}"
        except OSError as error:
            reason = describe(error)
        raise ConfigError(f"cannot listen on {where}: {reason}; choose another address with --listen, or --listen off")

    def _listener(self, found: tuple[Any, ...]) -> Listener:
        family, kind, protocol, _, address = found
        made = Listener(family, kind, protocol, most=self._connections, make_room=self._make_room)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            # Not later, by uvicorn: two sockets can be bound to one port while neither of them listens.
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
        return made

    def _make_room(self) -> bool:
        """Cut off the connection that is idle for longest, so that clients which hoard them keep nobody out."""
        assert self._uvicorn is not None
        open_now: Iterable[Any] = self._uvicorn.server_state.connections
        idle = [one for one in open_now if one.idle > _HOARDED]
        if idle:
            max(idle, key=lambda one: one.idle).transport.abort()
        return bool(idle)


def _protocol(patience: float) -> type[H11Protocol]:
    """HTTP/1.1 for clients that get on: one that sends or takes nothing would hold its place for ever."""

    class Impatient(H11Protocol):
        _answers = 0
        _idle_since = 0.0
        _next_look: asyncio.TimerHandle

        @property
        def idle(self) -> float:
            """Seconds that no request is answered; 0 while it is, and once the end has come."""
            busy = self.cycle is not None and not self.cycle.response_complete
            return 0.0 if busy or self.transport.is_closing() else self.loop.time() - self._idle_since

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as theirs
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._next_look = self.loop.call_later(patience, self._look, 0)

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_look.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._answers += 1
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # an answer is on its way already: what follows it is nonsense
                self.transport.close()

        def _look(self, answers: int) -> None:
            # One that is closing has an answer to send that is not taken.
            if self._answers == answers or self.transport.is_closing():
                self.transport.abort()
            else:
                self._next_look = self.loop.call_later(patience, self._look, self._answers)

    return Impatient
