"""Streams, WebSockets and long polls that are open at SIGTERM, with each uvicorn that we support."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
from collections.abc import Iterator

import pytest
from support.integrations.served import Place, Served, Slow
from support.processes import LIMIT, wait_until

GOING_AWAY = (1001, 1012)
"""RFC 6455, 7.4.1, and the registry of close codes: the server goes away, or restarts."""

pytestmark = pytest.mark.usefixtures("each_uvicorn")


class Channel:
    """The client's end of a WebSocket, for short frames."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT)
        self._file = self._socket.makefile("rb")
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        upgrade = f"GET /echo HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n"
        self._socket.sendall(upgrade.encode())
        assert b" 101 " in self._file.readline()
        while self._file.readline() != b"\r\n":
            pass

    def echo(self, text: bytes) -> bytes:
        self._socket.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)  # masked with zeros
        return self._frame(0x1)

    def close_code(self) -> int:
        return int.from_bytes(self._frame(0x8)[:2], "big")

    def _frame(self, kind: int) -> bytes:
        first, length = self._file.read(2)
        assert first == 0x80 | kind
        return self._file.read(length)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def _opened(served: Served, path: str) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(served.connect()) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer


def _has_ended(stream: http.client.HTTPResponse) -> bool:
    try:
        return stream.readline() == b""
    except (http.client.IncompleteRead, ConnectionError):
        return True


def test_open_connections_live_through_the_drain_and_end_after_it(place: Place) -> None:
    with place.uvicorn("--ws", "wsproto", app="shop_streams:app") as served:
        served.until("ready")
        long_poll = Slow(served, place, "/poll")
        with (
            _opened(served, "/events") as events,
            contextlib.closing(Channel(served.port)) as channel,
            long_poll.under_way(),
        ):
            assert channel.echo(b"before") == b"before"
            served.tell()
            while b"draining" not in events.readline():
                pass
            assert channel.echo(b"meanwhile") == b"meanwhile"
            served.tell()  # a second one ends the drain
            assert channel.close_code() in GOING_AWAY
            wait_until(lambda: _has_ended(events), "the end of the stream")
            assert served.process.poll() is None
        assert long_poll.answer().code == 200
        assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False


def test_an_endless_stream_ends_with_the_time_for_requests_under_way(place: Place) -> None:
    with place.uvicorn("--timeout-graceful-shutdown", "1", app="shop_streams:app", SHOP_DRAIN="0.1") as served:
        served.until("ready")
        with _opened(served, "/stream") as stream:
            assert stream.readline() == b"more\n"
            served.tell()
            assert served.wait() == -signal.SIGTERM
    assert place.is_alive() is False
