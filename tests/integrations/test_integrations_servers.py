"""Servers that drain in another way than uvicorn and gunicorn, or not at all: each is named at the start."""

from __future__ import annotations

import asyncio
import signal

import pytest
from support.integrations.served import Place
from support.processes import wait_until
from support.servers import free_port

from sharedvol.integrations.servers import server_name

STARLETTE = "shop_starlette:app"


SERVERS = [
    ("hypercorn", "--bind", "127.0.0.1:PORT", STARLETTE),
    ("granian", "--port", "PORT", "--interface", "asgi", STARLETTE),
]


@pytest.mark.parametrize("options", SERVERS)
def test_a_server_that_closes_its_port_first_is_named(place: Place, options: tuple[str, ...]) -> None:
    with place.other(*options) as served:
        served.until("ready")
        assert f"{options[0]} does not drain this replica at SIGTERM: serve it with uvicorn" in served.log
        served.tell()
        served.wait()
    assert place.is_alive() is False


def test_waitress_drains(place: Place) -> None:
    with place.other("waitress-serve", "--listen", "127.0.0.1:PORT", "shop_flask:app") as served:
        served.until("ready")
        served.tell()
        served.until("draining")
        assert served.ask().code == 200
        served.tell()  # a second one ends the drain
        assert served.wait() == 0  # it has ended by itself: requests under way were finished
    assert place.is_alive() is False
    assert "does not drain" not in served.log


def test_without_a_lifespan_the_service_starts_at_the_first_request_and_drains(place: Place) -> None:
    with place.uvicorn("--lifespan", "off", "--limit-max-requests", "100000") as served:
        served.until("ready")
        assert "uvicorn has not run the lifespan of this application" in served.log
        assert "--limit-max-requests=100000 ends this process without a drain" in served.log
        served.tell()
        served.until("draining")
        served.tell()
        assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_of_two_servers_of_one_application_the_first_that_stops_ends_only_itself(place: Place) -> None:
    other = free_port()
    (place.path / "two.py").write_text(TWO_SERVERS)
    place.environment["OTHER_PORT"] = str(other)
    place.fifo("stop")
    with place.develop("two.py") as served:
        served.until("ready")
        with place.reader("stop"):
            pass
        wait_until(lambda: "the other one has ended" in served.log, "the end of one server")
        served.until("ready")
        assert place.is_alive()
        served.tell()
        served.until("draining")
        assert served.ask().code == 200
        served.tell()
        assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_two_servers_of_one_application_drain_once(place: Place) -> None:
    (place.path / "two.py").write_text(TWO_SERVERS)
    place.environment["OTHER_PORT"] = str(free_port())
    with place.develop("two.py") as served:
        served.until("ready")
        served.tell()
        served.until("draining")
        assert served.ask().code == 200
        served.tell()
        assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_a_server_that_is_only_imported_does_not_count() -> None:
    async def name() -> str | None:
        return server_name()

    assert (server_name(), asyncio.run(name())) == (None, None)


TWO_SERVERS = """
import asyncio, os, sys, uvicorn
from support.integrations.shop_service import wait
from support.integrations.shop_starlette import app


async def main():
    first = uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[-1])))
    other = uvicorn.Server(uvicorn.Config(app, port=int(os.environ["OTHER_PORT"])))
    serving = asyncio.create_task(first.serve())
    while not first.started:
        await asyncio.sleep(0.01)
    ending = asyncio.create_task(other.serve())
    if os.path.exists("stop"):
        await asyncio.to_thread(wait, "stop")
        other.should_exit = True
        await ending
        print("the other one has ended", flush=True)
    await asyncio.gather(serving, ending)


asyncio.run(main())
"""
