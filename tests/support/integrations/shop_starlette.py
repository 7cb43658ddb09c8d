"""A Starlette application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sharedvol.integrations.starlette import DrainMiddleware, health_routes, lifespan
from support.integrations.shop_service import about, service, wait


@contextlib.asynccontextmanager
async def then(app: Starlette) -> AsyncIterator[dict[str, object]]:
    wait("then")
    yield {"slot": service.slot}


async def root(request: Request) -> JSONResponse:
    return JSONResponse({**about(), "slot_of_then": request.state.slot})


async def slow(request: Request) -> JSONResponse:
    await asyncio.to_thread(wait, "slow")
    return JSONResponse(about())


app = Starlette(
    routes=[Route("/", root), Route("/slow", slow), *health_routes(service)], lifespan=lifespan(service, then)
)
app.add_middleware(DrainMiddleware, service=service)
