"""Connections that are only held take no more descriptors than they are given, and keep no other client out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import LIMIT, wait_until
from support.sidecar.asking import ask, serving
from support.sidecar.board_scene import Clocks, busy_board
from support.sidecar.service_process import service, settled
from support.sidecar.volume import CLI, Volume

from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.transfer import batch as batches
from sharedvol_sidecar.web import listener, server
from sharedvol_sidecar.web.app import status_app
from sharedvol_sidecar.web.hosts import HostRule
from sharedvol_sidecar.web.listener import Listener

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def board() -> ServiceState:
    return busy_board(Clocks(), minutes=1)


@contextlib.contextmanager
def idle(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """So many connections that send nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address, timeout=LIMIT)) for _ in range(count)]


def closed(clients: list[socket.socket]) -> int:
    """How many of these the server has closed by now."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        return len(selector.select(0))


def test_of_too_many_connections_the_last_are_closed_and_the_first_are_answered(
    board: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HOARDED", LIMIT)
    with serving(board, connections=5, patience=LIMIT) as served:
        assert served.address is not None
        with idle(served.address, 5) as first, idle(served.address, 30) as others:
            wait_until(lambda: closed(others) == 30, "those that have no place to be closed")
            assert all(other.recv(1) == b"" for other in others)
            assert closed(first) == 0
            first[0].sendall(HEALTH)
            assert first[0].recv(100).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: answered(served.address), "a place")


def answered(address: Any) -> bool:
    """Whether a client gets an answer now."""
    with contextlib.suppress(ConnectionError), socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(HEALTH)
        return client.recv(100).startswith(b"HTTP/1.1 200 ")
    return False


def test_clients_that_hoard_connections_keep_nobody_out(board: ServiceState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience does not end in this test: what is idle for longest makes room."""
    monkeypatch.setattr(server, "_HOARDED", 0.0)
    with serving(board, connections=5, patience=LIMIT) as served:
        assert served.address is not None and served._uvicorn is not None
        connections = served._uvicorn.server_state.connections
        with idle(served.address, 5) as first:
            wait_until(lambda: len(connections) == 5, "all to be accepted")
            assert answered(served.address)
            wait_until(lambda: closed(first) == 1, "one of them to make room")


def test_a_connection_that_is_being_answered_makes_no_room(
    board: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HOARDED", 0.0)
    with serving(board, connections=1, patience=LIMIT) as served, socket.socket() as busy:
        assert served.address is not None and served._uvicorn is not None
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        busy.connect(served.address)
        busy.setblocking(False)
        connections = served._uvicorn.server_state.connections

        def stuck() -> bool:
            with contextlib.suppress(BlockingIOError):
                busy.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            return any(one.flow is not None and one.flow.write_paused for one in list(connections))

        wait_until(stuck, "the server to have an answer that is not taken")
        with idle(served.address, 3) as others:
            wait_until(lambda: closed(others) == 3, "those that have no place to be closed")
        assert len(connections) == 1


def test_a_flood_leaves_the_files_their_descriptors(volume: Volume) -> None:
    """Each open connection would cost the mover one: with the limit of this process 32 are the most."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
    with service(volume, shim=limit, interval="0.1") as served, contextlib.ExitStack() as stack:
        descriptors = f"/proc/{served.process.pid}/fd"
        before = len(os.listdir(descriptors))
        host, port = served.url.removeprefix("http://").rstrip("/").split(":")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 400 and hard > 400
        for number in range(300):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((host, int(port)))
            if number % 100 == 0:
                volume.write(f"c1/results/{number}", "x")
        wait_until(lambda: not volume.waiting(), "the files to be collected")
        assert len(os.listdir(descriptors)) < before + 32 + 30
        health = subprocess.run([*CLI, "health", "--listen", f"{host}:{port}", "--timeout", "30"], timeout=LIMIT)
        assert health.returncode == 0
        assert settled(served)["files"] == 3


@pytest.mark.parametrize(("limit", "connections"), [(64, 8), (256, 32), (1024, 100), (10**6, 100)])
def test_batches_leave_the_descriptors_of_connections_alone(
    monkeypatch: pytest.MonkeyPatch, limit: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    assert batches.connections() == connections
    assert batches.raise_descriptors() <= max(1, limit - connections)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_without_descriptors_nothing_is_accepted_and_nothing_raises(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """asyncio logs an error for each connection that waits, and tries again as often as it can."""
    paused: list[float] = []
    monkeypatch.setattr(listener.time, "sleep", paused.append)
    with Listener(most=2, make_room=lambda: False) as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        made.setblocking(False)
        with idle(made.getsockname(), 1), monkeypatch.context() as patch:

            def exhausted(self: socket.socket) -> Any:
                raise OSError(code, os.strerror(code))

            patch.setattr(socket.socket, "accept", exhausted)
            with pytest.raises(BlockingIOError):
                made.accept()
            assert paused
            patch.undo()
            made.accept()[0].close()


def test_a_flood_does_not_keep_the_event_loop_in_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0

    def next_one(self: socket.socket) -> Any:
        nonlocal refused
        refused += 1
        return socket.socket(), ("127.0.0.1", 1)

    monkeypatch.setattr(socket.socket, "accept", next_one)
    with Listener(most=0, make_room=lambda: False) as made, pytest.raises(BlockingIOError):
        made.accept()
    assert 0 < refused <= 100


WORDS = st.sampled_from(
    ["application/openmetrics-text", "text/plain", "*/*", "version", "escaping", "charset", "allow-utf-8", "values",
     "dots", "1.0.0", "0.0.4", "2", "x", "1..0", "-1", "1.0.0a", "9" * 5000, "", "q", "1_0.0.0"]
)  # fmt: skip
ACCEPT = st.lists(st.tuples(WORDS, st.sampled_from([";", "; ", ",", "=", "==", ""])), max_size=12).map(
    lambda parts: "".join(word + sign for word, sign in parts).encode()
)
HEADER = st.binary(max_size=60).filter(lambda raw: not set(raw) & {0, 10, 13})


def asked(app: Any, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, dict[bytes, bytes]]:
    """The code and the headers of the answer to a GET."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.fixture(scope="module")
def app() -> Any:
    return status_app(busy_board(Clocks(), minutes=1), HostRule("127.0.0.1"))


@settings(max_examples=200, deadline=None)
@given(accept=st.one_of(ACCEPT, HEADER))
def test_whatever_is_accepted_the_metrics_are_told(app: Any, accept: bytes) -> None:
    code, headers = asked(app, "/metrics", b"", [(b"host", b"localhost"), (b"accept", accept)])
    assert code == 200
    kind = headers[b"content-type"].decode("ascii")
    assert kind.startswith(("text/plain; version=", "application/openmetrics-text; version="))
    assert kind.isprintable() and len(kind) < 200


@settings(max_examples=200, deadline=None)
@given(
    host=st.one_of(HEADER, st.sampled_from([b"localhost", b"[::1]", b"127.0.0.1:1"])),
    path=st.sampled_from(["/", "/status.json", "/healthz", "/readyz", "/metrics", "/none", "//", "*", ""]),
    query=st.binary(max_size=30),
    others=st.lists(st.tuples(st.sampled_from([b"accept", b"cookie", b"range", b"content-length", b"x"]), HEADER)),
)
def test_no_header_and_no_query_is_an_error_of_ours(
    app: Any, host: bytes, path: str, query: bytes, others: list[tuple[bytes, bytes]]
) -> None:
    code, _ = asked(app, path, query, [(b"host", host), *others])
    assert code < 500


def test_an_answer_in_openmetrics_is_given_where_it_is_accepted(board: ServiceState) -> None:
    with serving(board) as served:
        answer = ask(served, "/metrics", Accept="application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert answer.text.endswith("# EOF\n")
        plain = ask(served, "/metrics", Accept="application/openmetrics-text; version=x")
        assert plain.code == 200 and b"sharedvol_sidecar_ready" in plain.body


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n\r\n"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", b"x" * 20),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"nonsense\r\n\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
    ],
)
def test_nonsense_after_an_answer_is_no_line_in_the_log(
    board: ServiceState, capfd: pytest.CaptureFixture[str], first: bytes, then: bytes
) -> None:
    with serving(board) as served:
        assert served.address is not None
        with socket.create_connection(served.address, timeout=LIMIT) as client, contextlib.suppress(ConnectionError):
            client.sendall(first)
            assert client.recv(1) == b"H"
            client.sendall(then)
            while client.recv(65_536):
                pass
        assert ask(served, "/healthz").code == 200
    assert capfd.readouterr() == ("", "")


FLOODED = """
import socket, sys, threading
from sharedvol_sidecar.commands.health import health_command
listener = socket.create_server(("127.0.0.1", 0))
def close_two_and_answer():
    for _ in range(2):
        listener.accept()[0].close()
    connection = listener.accept()[0]
    connection.recv(1000)
    body = b'{"status": "alive"}'
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    connection.close()
threading.Thread(target=close_two_and_answer, daemon=True).start()
health_command(["--listen", "127.0.0.1:%d" % listener.getsockname()[1], "--timeout", "30"])
"""


def test_health_asks_again_where_the_service_has_no_place(tmp_path: Any) -> None:
    done = subprocess.run([sys.executable, "-c", FLOODED], capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
