"""The HTTP server, which runs in its own thread."""

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
"""Seconds in which a client has to send a request and read the response. Then its connection is closed."""

_KEEP_ALIVE = 5  # seconds that a connection may be idle between requests: less than PATIENCE
_LARGEST_HEAD = 16_384
_BACKLOG = 100  # connections that wait to be accepted
_LOGGERS = ("uvicorn", "asyncio")
_HOARDED = 1.0  # seconds after which an idle connection is closed if another needs its place
_STOP = 3.0


class Server:
    """Serves the state of the service from `start` to `stop`, on a daemon thread that does not keep the process alive.

    The main thread handles signals. Other hosts reach the port only if ``host`` allows it.

    Args:
        state: the state of the service.
        host: an address or a host name. The first address of a name is used.
        port: the port; 0 lets the kernel choose one.
        allowed_hosts: more names for the ``Host`` of requests to a loopback address, see `HostRule`.
        patience: seconds that a client may take.
        connections: the largest number of open connections. A new one replaces an idle one, or is closed.
    """

    def __init__(
        self,
        state: ServiceState,
        host: str,
        port: int,
        *,
        allowed_hosts: tuple[str, ...] = (),
        patience: float = PATIENCE,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._state, self._host, self._port = state, host, port
        self._allowed_hosts, self._patience, self._connections = allowed_hosts, patience, connections
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._relay = ToStructlog("http", logging.ERROR)
        self.address: tuple[str, int] | None = None
        """The address and port that `start` bound."""

    @property
    def url(self) -> str:
        """The address of the status page, after `start`."""
        assert self.address is not None, "start() first"
        return f"http://{format_address(*self.address)}/"

    def start(self) -> None:
        """Start to listen. Clients can connect when this returns.

        Raises:
            ConfigError: the address is in use, or is not an address of this host.
        """
        listener = self._listen()
        bound = listener.getsockname()
        self.address = (bound[0], bound[1])
        hosts = HostRule(bound[0], (self._host, *self._allowed_hosts))
        config = uvicorn.Config(
            status_app(self._state, hosts),
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
        # Its warnings concern what clients send and are not logged. Its errors are.
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._relay)
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([listener],), name="sharedvol-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port and end the thread, within three seconds whatever clients do."""
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
            # Here, and not later in uvicorn, because two sockets can be bound to one port until one of them listens.
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
        return made

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest, so that idle clients do not keep others out."""
        assert self._uvicorn is not None
        open_now: Iterable[Any] = self._uvicorn.server_state.connections
        idle = [one for one in open_now if one.idle > _HOARDED]
        if idle:
            max(idle, key=lambda one: one.idle).transport.abort()
        return bool(idle)


def _protocol(patience: float) -> type[H11Protocol]:
    """Return a protocol that closes connections of clients that neither send nor read within ``patience`` seconds."""

    class Impatient(H11Protocol):
        _answers = 0
        _idle_since = 0.0
        _next_check: asyncio.TimerHandle

        @property
        def idle(self) -> float:
            """Seconds without a request; 0 during a request, and while the connection is closing."""
            busy = self.cycle is not None and not self.cycle.response_complete
            return 0.0 if busy or self.transport.is_closing() else self.loop.time() - self._idle_since

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as theirs
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._next_check = self.loop.call_later(patience, self._check, 0)

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_check.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._answers += 1
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # a response was begun, so no other can follow
                self.transport.close()

        def _check(self, answers: int) -> None:
            # A connection that is closing has a response that the client does not read.
            if self._answers == answers or self.transport.is_closing():
                self.transport.abort()
            else:
                self._next_check = self.loop.call_later(patience, self._check, self._answers)

    return Impatient
