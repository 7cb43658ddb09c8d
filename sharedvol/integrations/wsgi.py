"""Health checks for any WSGI application.

With gunicorn, also use `sharedvol.integrations.gunicorn`, which starts and drains.

::

    application = HealthMiddleware(application, service)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from sharedvol.health import LIVE_PATH, READY_PATH, HealthReport
from sharedvol.integrations.servers import server_name
from sharedvol.integrations.service import Service

_Environ = dict[str, Any]
_Respond = Callable[..., Any]
_App = Callable[[_Environ, _Respond], Iterable[bytes]]


def prepare(service: Service) -> None:
    """Let the service drain under waitress, which handles no signal, or warn if nothing drains it.

    Call it where the application is created. A server that imports the application is on the stack then.
    """
    name = server_name()
    if name == "waitress":
        service.drain_on_sigterm()
    if name is not None:
        service.warn_if_undrained()


def at_request(service: Service) -> None:
    """Start a service that has not been started, without waiting for it, and warn if nothing drains it."""
    service.start_in_background()
    service.warn_if_undrained()


class HealthMiddleware:
    """A middleware that answers the two health checks and forwards all other requests.

    The first request starts a service that has not been started, without waiting for it. Better start it before, with
    `Service.start` or gunicorn's hooks, because a server without requests has not joined its volume.

    Args:
        app: the application.
        service: the service that answers.
        live_path: the path of the liveness check, below the mount point of the application.
        ready_path: the path of the readiness check, below the mount point of the application.
    """

    def __init__(
        self, app: _App, service: Service, *, live_path: str = LIVE_PATH, ready_path: str = READY_PATH
    ) -> None:
        self._app, self._service = app, service
        self._answers = {live_path: service.live, ready_path: service.ready}
        prepare(service)

    def __call__(self, environ: _Environ, start_response: _Respond) -> Iterable[bytes]:
        """Handle a request, as a WSGI application (PEP 3333)."""
        at_request(self._service)
        answer = self._answers.get(environ.get("PATH_INFO", ""))
        if answer is None:
            return self._app(environ, start_response)
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in ("GET", "HEAD"):
            return _respond(start_response, HealthReport(405, {"error": "use GET"}), method, [("Allow", "GET, HEAD")])
        return _respond(start_response, answer(), method, [])


def _respond(
    start_response: _Respond, report: HealthReport, method: str, more: list[tuple[str, str]]
) -> Iterable[bytes]:
    body = json.dumps(report.body).encode()
    status = HTTPStatus(report.code)
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    start_response(f"{status.value} {status.phrase}", headers + more)
    return [] if method == "HEAD" else [body]
