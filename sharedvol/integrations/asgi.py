"""A `Service` in an ASGI application, for Starlette, FastAPI and others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from sharedvol.health import HealthReport
from sharedvol.integrations.process import in_thread
from sharedvol.integrations.servers import server_name
from sharedvol.integrations.service import Service

_log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.05

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[bool]:
    """Start the service, and stop it at the end of the block. SIGTERM is delayed while ``service.serving``.

    If several servers run the application, the service stops when the last of their lifespans ends.

    Yields:
        False if SIGTERM arrived before the service had started; the application should then not serve.

    Raises:
        SharedVolError: as `Service.start`.
    """
    with service.used():
        yield await _start(service)


def start_without_lifespan(service: Service) -> None:
    """Start the service at the first request, if the server has not run the lifespan that starts it.

    Daphne does not run it, and neither does a server with ``--lifespan off`` or an application that mounts this one.
    Without a server, as in a test, nothing happens.
    """
    if service.started or service.in_use:
        return
    name = server_name()
    if name is not None and service.start_in_background():
        _log.warning("%s has not run the lifespan of this application: its service starts at the first request", name)
        service.drain_on_sigterm()


async def _start(service: Service) -> bool:
    starting = in_thread(service.start, "start")
    while not starting.done():
        if service.told_to_stop:
            return False
        await asyncio.wait({starting}, timeout=_POLL_SECONDS)
    starting.result()
    return True


class Answers:
    """Health reports for an event loop, which they do not block.

    Readiness is determined in a thread. Requests that arrive meanwhile share its answer.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pending: asyncio.Future[HealthReport] | None = None

    async def ready(self) -> HealthReport:
        """Return `Service.ready`."""
        start_without_lifespan(self._service)
        self._service.keep_draining_on_sigterm()
        if self._service.draining:
            return self._service.ready()  # this runs no checks
        pending = self._pending
        if pending is None or pending.done() or pending.get_loop() is not asyncio.get_running_loop():
            pending = self._pending = in_thread(self._service.ready, "ready")
        report = await asyncio.shield(pending)
        return self._service.ready() if self._service.draining else report

    def live(self) -> HealthReport:
        """Return `Service.live`, without a thread."""
        return self._service.live()


class DrainMiddleware:
    """A middleware that answers with ``Connection: close`` during the drain, so that proxies open other connections.

    When the server stops, it closes idle connections. A proxy may send a request on one at that moment. If the request
    is not idempotent, most proxies then answer 502.

    Args:
        app: the ASGI application.
        service: the service that drains.
    """

    def __init__(self, app: _App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Handle a request, as an ASGI application."""
        if scope["type"] != "lifespan":
            start_without_lifespan(self._service)
        # HTTP/2 forbids the header (RFC 9113, 8.2.2).
        if scope["type"] != "http" or not str(scope.get("http_version", "1.1")).startswith("1"):
            await self._app(scope, receive, send)
            return

        async def send_closing(message: _Message) -> None:
            if message["type"] == "http.response.start" and self._service.draining:
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_closing)
