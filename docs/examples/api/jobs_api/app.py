"""The application: ``uvicorn jobs_api.app:app``."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from sharedvol import Cache, LockTimeout, MigrationCoordinator, Semaphore, container_id
from sharedvol.integrations import Service
from sharedvol.integrations.starlette import DrainMiddleware, health_routes, lifespan

from . import logs
from .jobs import Job, Jobs
from .settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION = "1"  # of the code that makes reports: change both together, and the cache is emptied once
MIN_FREE_BYTES = 16 * 2**20

JobId = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9-]{1,64}$")]
Day = Annotated[date, PathParameter(lt=date.max)]  # the day after it is asked for, too
Number = Annotated[float, Field(ge=-1e12, le=1e12)]  # no NaN, and no infinite sum: JSON has neither


class Order(BaseModel):
    """What to do."""

    numbers: list[Number] = Field(min_length=1, max_length=10_000)
    seconds: float = Field(default=0, ge=0, le=60, description="how long the work is to take")
    unit: str = "1"


def create_app(settings: Settings) -> FastAPI:
    """The API with these settings."""
    settings.spool.mkdir(parents=True, exist_ok=True)
    logs.configure(settings.spool)
    (settings.spool / "locks").mkdir(exist_ok=True)

    # One of all replicas applies the migrations; the others answer "alive, not ready" until it has.
    coordinator = MigrationCoordinator(settings.database, MIGRATIONS, lock_timeout=settings.lock_timeout)
    service = Service(
        volume=settings.spool,
        coordinator=coordinator,
        checks={"disk": lambda: shutil.disk_usage(settings.spool).free > MIN_FREE_BYTES},
        drain=settings.drain_seconds,
        purpose="jobs api",
    )
    # pool_pre_ping: a connection that died with the database server is replaced, not handed to a request.
    engine = create_engine(settings.database, pool_size=settings.connections, max_overflow=0, pool_pre_ping=True)
    jobs = Jobs(engine, settings.spool)
    cache = Cache(settings.cache / "reports", version=VERSION, max_bytes=100 * 2**20, max_age=60)
    few = Semaphore(settings.spool / "locks" / "report", 2, timeout=5, purpose="report")
    units = _units(settings.data / "units.txt")

    app = FastAPI(title="jobs", lifespan=lifespan(service))
    app.router.routes.extend(health_routes(service))
    app.add_middleware(DrainMiddleware, service=service)
    app.add_middleware(SayReplica)

    @app.exception_handler(OperationalError)  # the server is gone, or another request had the job's row for too long
    @app.exception_handler(NoConnection)
    @app.exception_handler(LockTimeout)  # others make reports, and take long
    def not_now(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger(__name__).warning("%s %s: %s", request.method, request.url.path, error)
        return JSONResponse({"detail": "busy, or the database is away: ask again"}, 503, {"Retry-After": "1"})

    @app.get("/")
    def who() -> dict[str, object]:
        return {"replica": service.replica, "slot": service.slot}

    @app.put("/jobs/{job_id}")
    def put_job(job_id: JobId, order: Order, response: Response) -> Job:
        if order.unit not in units:
            raise HTTPException(422, f"no such unit: {order.unit}")
        job, new = jobs.put(job_id, [number * units[order.unit] for number in order.numbers], order.seconds)
        response.status_code = 201 if new else 200
        return job

    @app.get("/jobs/{job_id}")
    def get_job(job_id: JobId) -> Job:
        job = jobs.find(job_id)
        if job is None:
            raise HTTPException(404, "no such job, or it is not done")
        return job

    @app.get("/reports/{day}")
    def get_report(day: Day) -> dict[str, object]:
        def make() -> dict[str, object]:
            with few:  # at most two on all replicas together: reports must not take the database from the orders
                return jobs.report(day)

        return cache.get(("report", day.isoformat()), make)

    return app


def _units(path: Path) -> dict[str, float]:
    """The factors of ``units.txt``: lines such as ``km 1000``. Without the file there is only the unit ``1``."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {"1": 1.0} | {name: float(factor) for name, factor in (line.split() for line in lines if line.strip())}


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SayReplica:
    """Put the replica's name into each response.

    Not with ``@app.middleware("http")``, which sends a response's head and body from different tasks: a replica that is
    killed between the two leaves the client with half a response.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._header = (b"x-replica", container_id().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, send_named)


app = create_app(Settings.read())
