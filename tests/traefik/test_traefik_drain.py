"""SIGTERM to a real uvicorn behind Traefik: with the drain nobody notices, and without it clients do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.installed import DIE_WITH_US
from support.processes import LIMIT, reaped
from support.servers import free_port
from support.traefik.traefik_proxy import NEVER, Balancing, Traefik, wait_told

SERVER = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from sharedvol.integrations import Service
from sharedvol.integrations.starlette import DrainMiddleware, health_routes, lifespan
port, drain = sys.argv[1:]
service = Service(drain=float(drain))
async def take(request):
    return PlainTextResponse(port, headers={"X-Replica": port})
app = Starlette(routes=[Route("/", take, methods=["GET", "POST"]), *health_routes(service)], lifespan=lifespan(service))
app.add_middleware(DrainMiddleware, service=service)
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
"""

Process = subprocess.Popen[bytes]


@pytest.fixture
def serving(traefik: Traefik) -> Iterator[Callable[[float], dict[int, Process]]]:
    """Two servers that drain for so many seconds, by their ports."""
    with ExitStack() as stack:

        def start(drain: float) -> dict[int, Process]:
            made = {}
            for port in (free_port(), free_port()):
                command = [*DIE_WITH_US, sys.executable, "-c", SERVER, str(port), str(drain)]
                made[port] = stack.enter_context(reaped(subprocess.Popen(command, env={**os.environ})))
            # One after the other: the last answer is of Traefik's own check.
            for port in made:
                traefik.serve([port], Balancing(check=NEVER, retry=None, passive=None))
                wait_told(lambda: traefik.ask("GET", "/").status == 200, f"a server on {port}")
            return made

        yield start


def test_a_stop_with_a_drain_fails_no_request_even_without_retry(
    traefik: Traefik, serving: Callable[[float], dict[int, Process]]
) -> None:
    servers = serving(LIMIT)
    traefik.serve(servers, Balancing(retry=None, passive=None))
    stopping, staying = servers
    assert {traefik.ask("POST", "/", "x").replica for _ in range(8)} == {str(stopping), str(staying)}
    servers[stopping].terminate()
    answers = []
    while stopping in traefik.up():  # requests go on to it meanwhile
        answers.append(traefik.ask("POST", "/", "x"))
    answers += [traefik.ask("POST", "/", "x") for _ in range(8)]
    assert {one.status for one in answers} == {200}
    assert {one.replica for one in answers[-8:]} == {str(staying)}
    servers[stopping].terminate()  # a second one ends the drain, so that nobody waits here
    assert servers[stopping].wait(LIMIT) in (0, -signal.SIGTERM)
    assert {traefik.ask("POST", "/", "x").status for _ in range(8)} == {200}


def test_a_stop_without_a_drain_fails_requests_until_the_next_check(
    traefik: Traefik, serving: Callable[[float], dict[int, Process]]
) -> None:
    servers = serving(0)
    traefik.serve(servers, Balancing(check=NEVER, retry=None, passive=None))
    stopping, _ = servers
    servers[stopping].terminate()
    assert servers[stopping].wait(LIMIT) in (0, -signal.SIGTERM)
    assert 502 in [traefik.ask("POST", "/", "x").status for _ in range(8)]
