"""A Starlette application with connections that stay open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sharedvol.integrations.starlette import DrainMiddleware, health_routes, lifespan
from support.integrations.shop_service import about, service, wait


async def events(request: Request) -> EventSourceResponse:
    async def endless() -> AsyncIterator[dict[str, str]]:
        while True:
            yield {"data": "draining" if service.draining else "serving"}
            await asyncio.sleep(0.01)

    return EventSourceResponse(endless())


async def stream(request: Request) -> StreamingResponse:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"more\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(endless())


async def poll(request: Request) -> JSONResponse:
    await asyncio.to_thread(wait, "slow")
    return JSONResponse(about())


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


app = Starlette(
    routes=[
        Route("/events", events),
        Route("/stream", stream),
        Route("/poll", poll),
        WebSocketRoute("/echo", echo),
        *health_routes(service),
    ],
    lifespan=lifespan(service),
)
app.add_middleware(DrainMiddleware, service=service)
