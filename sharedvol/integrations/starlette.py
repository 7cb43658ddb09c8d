"""Starlette and FastAPI, served by uvicorn or by gunicorn's uvicorn worker.

::

    app = FastAPI(lifespan=lifespan(service))
    app.router.routes.extend(health_routes(service))
    app.add_middleware(DrainMiddleware, service=service)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from sharedvol.health import LIVE_PATH, READY_PATH, HealthReport
from sharedvol.integrations.asgi import Answers, DrainMiddleware, running
from sharedvol.integrations.service import Service

__all__ = ["DrainMiddleware", "health_routes", "lifespan"]

_Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def lifespan(service: Service, then: _Lifespan | None = None) -> _Lifespan:
    """A lifespan that starts and stops ``service``.

    It does not wait for the migrations: the server answers ``/health/live`` meanwhile. On SIGTERM the service drains,
    in the main thread of a server that handles the signal by ``signal.signal``, as uvicorn does.

    Args:
        service: what to run.
        then: the application's own lifespan, run inside: it finds the volume joined, and the migrations begun.
    """

    @contextlib.asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Any]:
        async with running(service) as started:
            if then is None or not started:
                service.serving = service.serving or (started and not service.told_to_stop)
                yield
            else:
                async with then(app) as state:
                    service.serving = service.serving or not service.told_to_stop
                    yield state

    return run


def health_routes(service: Service, *, live_path: str = LIVE_PATH, ready_path: str = READY_PATH) -> list[BaseRoute]:
    """Routes for the two checks, to be added to an application's; they are not in FastAPI's documentation.

    Args:
        service: what answers.
        live_path, ready_path: where.
    """
    answers = Answers(service)

    async def live(request: Request) -> JSONResponse:
        return _json(answers.live())

    async def ready(request: Request) -> JSONResponse:
        return _json(await answers.ready())

    return [Route(live_path, live, methods=["GET"]), Route(ready_path, ready, methods=["GET"])]


def _json(report: HealthReport) -> JSONResponse:
    return JSONResponse(report.body, report.code, {"cache-control": "no-store"})
