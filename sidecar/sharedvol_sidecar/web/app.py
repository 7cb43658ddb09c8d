"""The HTTP application. It reads only the state of the service: no request can read a file of a volume."""

from __future__ import annotations

import json
import re
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web import payloads
from sharedvol_sidecar.web.hosts import HostRule
from sharedvol_sidecar.web.metrics import registry
from sharedvol_sidecar.web.page import Page

_CONTENT_TYPE = re.compile(r"[a-z/-]+; version=[0-9.]{1,20}; charset=utf-8(; escaping=[a-z0-9-]+)?")


def status_app(state: ServiceState, hosts: HostRule) -> ASGIApp:
    """Return the ASGI application with ``/``, ``/status.json``, ``/healthz``, ``/readyz`` and ``/metrics``.

    Args:
        state: the state of the service.
        hosts: the names that requests may have.
    """
    page, metrics = Page(), registry(state.picture)

    # These coroutines never wait, so they run one at a time on the server's thread.
    async def status_page(request: Request) -> Response:
        return HTMLResponse(page.render(state.picture(), refresh="pause" not in request.query_params))

    async def status_json(request: Request) -> Response:
        return _json(payloads.status(state.picture()))

    async def healthz(request: Request) -> Response:
        snapshot = state.picture()
        return _json(payloads.health(snapshot), 200 if snapshot.alive else 503)

    async def readyz(request: Request) -> Response:
        snapshot = state.picture()
        return _json(payloads.readiness(snapshot), 200 if snapshot.ready else 503)

    async def prometheus(request: Request) -> Response:
        body, content_type = _encoded(metrics, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    app = Starlette(
        routes=[
            Route("/", status_page),
            Route("/status.json", status_json),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", prometheus),
        ]
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host of the request
    return _Guard(app, hosts, _headers(page.style_hash))


def _headers(style_hash: str) -> dict[str, str]:
    return {
        "content-security-policy": (
            f"default-src 'none'; style-src '{style_hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


class _Guard:
    """Refuses a ``Host`` that is not accepted, and adds the security headers to every response, also to errors."""

    def __init__(self, app: ASGIApp, hosts: HostRule, headers: dict[str, str]) -> None:
        self._app, self._hosts, self._headers = app, hosts, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        app = self._app if self._hosts.accepts(Headers(scope=scope).get("host")) else _MISDIRECTED
        await app(scope, receive, guarded)


# RFC 9110, section 15.5.20: this server does not answer for that name.
_MISDIRECTED = PlainTextResponse(
    "this server answers for addresses, localhost and allowed names, not for this Host\n", 421
)


def _encoded(metrics: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that a client accepts, or as plain text if its header is wrong."""
    try:
        return _encoded_as(metrics, accept)
    except Exception:  # wrong parameters cause errors of any kind; an error of ours is raised again
        return _encoded_as(metrics, "")


def _encoded_as(metrics: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    if not _CONTENT_TYPE.fullmatch(content_type):  # it repeats a part of the client's header
        raise ValueError(content_type)
    return encode(metrics), content_type


def _json(body: dict[str, Any], code: int = 200) -> Response:
    # ASCII only, because a name that is not UTF-8 has lone surrogates, which UTF-8 cannot encode.
    return Response(json.dumps(body) + "\n", code, media_type="application/json")
