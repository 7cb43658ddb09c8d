"""A lifespan and health checks for Starlette and FastAPI, served by uvicorn or by gunicorn's uvicorn worker.

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
    """Return a lifespan that starts and stops ``service``.

    It does not wait for the migrations, so the server answers ``/health/live`` meanwhile. The service drains at
    SIGTERM if the server handles the signal by ``signal.signal`` in the main thread, as uvicorn does.

    Args:
        service: the service to run.
        then: the application's own lifespan. It runs inside, when the volume is joined and the migrations have begun.
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
    """Return the routes of the two health checks. FastAPI's documentation does not list them.

    Args:
        service: the service that answers.
        live_path: the path of the liveness check.
        ready_path: the path of the readiness check.
    """
    answers = Answers(service)

    async def live(_: Request) -> JSONResponse:
        return _json(answers.live())

    async def ready(_: Request) -> JSONResponse:
        return _json(await answers.ready())

    return [Route(live_path, live, methods=["GET"]), Route(ready_path, ready, methods=["GET"])]


def _json(report: HealthReport) -> JSONResponse:
    return JSONResponse(report.body, report.code, {"cache-control": "no-store"})
