"""The frameworks' own sides, without a server: Starlette, FastAPI, WSGI and Flask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.testclient import TestClient
from support.processes import wait_until

from sharedvol import MigrationCoordinator, Volume
from sharedvol.integrations import Service
from sharedvol.integrations.asgi import Answers
from sharedvol.integrations.flask import init_app
from sharedvol.integrations.starlette import DrainMiddleware, health_routes, lifespan
from sharedvol.integrations.wsgi import HealthMiddleware


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    for name in ("volume", "migrations"):
        (tmp_path / name).mkdir()
    (tmp_path / "migrations" / "001.sql").write_text("CREATE TABLE a (id INT);\n")
    coordinator = MigrationCoordinator(f"sqlite:///{tmp_path / 'shop.db'}", tmp_path / "migrations")
    made = Service(volume=tmp_path / "volume", coordinator=coordinator, exit_on_failure=False, max_age=0)
    yield made
    made.stop()


def test_of_two_clients_of_one_application_the_last_stops_the_service(service: Service, tmp_path: Path) -> None:
    app = Starlette(routes=health_routes(service), lifespan=lifespan(service))
    volume = Volume(tmp_path / "volume")
    with TestClient(app) as last:
        wait_until(lambda: last.get("/health/ready").status_code == 200, "readiness")
        for _ in range(2):
            with TestClient(app) as first:
                assert first.get("/health/ready").status_code == 200
            assert last.get("/health/ready").status_code == 200
            assert volume.is_alive(str(service.replica))
    assert volume.is_alive(str(service.replica)) is False
    assert not service.started


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_an_application_lives_as_long_as_its_lifespan(service: Service, kind: Any) -> None:
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def then(app: Any) -> AsyncIterator[dict[str, Any]]:
        seen.append(service.slot)
        yield {"seen": seen}
        seen.append(service.slot)  # inside: the volume is left after the application's own end

    app = kind(lifespan=lifespan(service, then))
    app.router.routes.extend(health_routes(service))
    app.add_middleware(DrainMiddleware, service=service)
    for _ in range(2):
        with TestClient(app) as client:
            wait_until(lambda client=client: client.get("/health/ready").status_code == 200, "readiness")
            assert client.get("/health/live").json()["status"] == "alive"
            assert client.head("/health/ready").status_code == 200
            assert client.post("/health/ready").status_code == 405
            assert "connection" not in client.get("/health/live").headers
            service.begin_drain()
            answer = client.get("/health/ready")
            assert (answer.status_code, answer.json()["reason"]) == (503, "draining")
            assert answer.headers["connection"] == "close"
        assert service.slot is None
    assert seen == [0, 0, 0, 0]
    if kind is FastAPI:
        assert "/health/live" not in app.openapi()["paths"]


def test_what_the_application_raises_at_its_start_ends_the_part_in_the_volume(service: Service) -> None:
    @contextlib.asynccontextmanager
    async def then(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no pool")
        yield

    with pytest.raises(RuntimeError, match="no pool"), TestClient(Starlette(lifespan=lifespan(service, then))):
        pass
    assert service.slot is None


def test_a_crowd_that_asks_at_once_is_one_question(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start(wait=True)
    asked = []
    ready = service.ready
    monkeypatch.setattr(service, "ready", lambda: asked.append(1) or ready())

    async def crowd() -> list[int]:
        answers = Answers(service)
        return [report.code for report in await asyncio.gather(*(answers.ready() for _ in range(50)))]

    assert asyncio.run(crowd()) == [200] * 50
    assert len(asked) == 1
    service.begin_drain()
    assert asyncio.run(crowd()) == [503] * 50


def test_connection_close_is_sent_in_a_drain_only_and_never_in_http_2(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Connection", b"keep-alive")]})

    async def headers(version: str) -> list[tuple[bytes, bytes]]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await DrainMiddleware(app, service)({"type": "http", "http_version": version}, send, send)
        return sent[0]["headers"]

    kept = [(b"Connection", b"keep-alive")]
    assert asyncio.run(headers("1.1")) == kept
    service.begin_drain()
    assert asyncio.run(headers("1.1")) == [(b"connection", b"close")]
    assert asyncio.run(headers("2")) == kept


def _wsgi(app: Any, path: str, method: str = "GET") -> tuple[str, bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    status: list[str] = []
    body = validator(app)(environ, lambda code, headers, error=None: status.append(code))
    try:
        return status[0], b"".join(body)
    finally:
        body.close()


def test_a_wsgi_application_answers_and_starts_at_its_first_request(service: Service) -> None:
    def inner(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"inner"]

    app = HealthMiddleware(inner, service)
    assert _wsgi(app, "/")[1] == b"inner"
    wait_until(lambda: _wsgi(app, "/health/ready")[0] == "200 OK", "readiness")
    assert service.slot == 0
    assert b'"alive"' in _wsgi(app, "/health/live")[1]
    assert _wsgi(app, "/health/live", "HEAD")[1] == b""
    assert _wsgi(app, "/health/live", "POST")[0].startswith("405")
    service.begin_drain()
    assert _wsgi(app, "/health/ready")[0] == "503 Service Unavailable"


def test_a_flask_application_answers_and_starts_at_its_first_request(service: Service) -> None:
    app = Flask("shop")
    init_app(app, service)
    client = app.test_client()
    wait_until(lambda: client.get("/health/ready").status_code == 200, "readiness")
    assert app.extensions["sharedvol"] is service
    assert client.get("/health/ready").headers["Cache-Control"] == "no-store"
    assert client.get("/health/live").json["status"] == "alive"
    service.begin_drain()
    assert client.get("/health/ready").json["reason"] == "draining"
    service.stop()
    client.get("/health/live")
    assert not service.started
