"""HTTP: what is answered, to whom, and that no client holds the service."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from support.processes import LIMIT, reaped, wait_until
from support.sidecar.asking import ask, serving
from support.sidecar.board_scene import HOSTILE, Clocks, busy_board, hostile_board

from sharedvol_sidecar.config.listen import parse_listen
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web.hosts import HostRule
from sharedvol_sidecar.web.server import Server

PATHS = ("/", "/status.json", "/healthz", "/readyz", "/metrics")


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def board(clocks: Clocks) -> ServiceState:
    return busy_board(clocks, minutes=3)


@pytest.fixture
def server(board: ServiceState) -> Iterator[Server]:
    with serving(board) as server:
        yield server


def raw(server: Server, sent: bytes) -> bytes:
    """What comes back for these bytes until the server closes."""
    assert server.address is not None
    with socket.create_connection(server.address, timeout=LIMIT) as connection:
        connection.sendall(sent)
        found = b""
        while part := connection.recv(65_536):
            found += part
        return found


def test_health_is_about_the_main_loop(server: Server, clocks: Clocks) -> None:
    assert (ask(server, "/healthz").code, ask(server, "/healthz").json["status"]) == (200, "alive")
    clocks.now += 61
    answer = ask(server, "/healthz")
    assert (answer.code, answer.json["status"], answer.json["heard_seconds_ago"]) == (503, "stalled", 61.0)


def test_readiness_tells_each_reason(server: Server, board: ServiceState) -> None:
    answer = ask(server, "/readyz")
    assert answer.code == 200
    assert (answer.json["status"], answer.json["reasons"]) == ("ready", [])
    assert "reason" not in answer.json
    board.fault("destination_full", "no space left on device (ENOSPC)")
    board.stopping()
    answer = ask(server, "/readyz")
    assert answer.code == 503
    assert (answer.json["status"], answer.json["reason"]) == ("not_ready", "stopping")
    assert [one["reason"] for one in answer.json["reasons"]] == ["stopping", "destination_full"]
    assert answer.json["reasons"][1]["detail"] == "no space left on device (ENOSPC)"
    assert answer.json["reasons"][1]["since"] == "2027-01-15T08:03:08.000Z"
    assert ask(server, "/healthz").code == 200  # to restart it would not mend it


def test_the_json_has_what_the_page_shows_with_names_as_they_are() -> None:
    with serving(hostile_board(Clocks())) as server:
        answer = ask(server, "/status.json")
    assert answer.body.isascii()
    assert {one["detail"] for one in answer.json["recent"]} == {(f"results/{name}"[:1001]) for name in HOSTILE.values()}
    assert len(answer.json["minutes"]) == 60
    assert answer.json["backlog"]["files"] == len(HOSTILE)
    assert answer.json["errors"]["file"] == answer.json["dropped"]["refused"] == len(HOSTILE)


@pytest.mark.parametrize("path", [*PATHS, "/none", "/healthz/", "/../etc/passwd", "/%2e%2e/etc/passwd"])
def test_every_answer_has_the_security_headers(server: Server, path: str) -> None:
    headers = ask(server, path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_done_but_looking(server: Server, path: str, method: str) -> None:
    answer = ask(server, path, method)
    assert answer.code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    answer = ask(server, path, "HEAD")
    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["content-type"] == ask(server, path).headers["content-type"]


@pytest.mark.parametrize(
    "path",
    ["/none", "/healthz/", "//healthz", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/status.css", "/?/../x/y"],
)
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    answer = ask(server, path)
    assert (answer.code == 404) != path.startswith("/?")
    assert b"root:" not in answer.body
    assert "location" not in answer.headers


def test_a_name_that_was_rebound_to_loopback_is_not_answered(server: Server) -> None:
    answer = ask(server, "/status.json", Host="evil.example:8788")
    assert answer.code == 421
    assert b"3f9c0d1e2b4a" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    for host in ("localhost", "LOCALHOST.:80", "127.0.0.1:8788", "[::1]:8788", "10.0.0.7"):
        assert ask(server, "/healthz", Host=host).code == 200, host


def test_a_name_that_was_allowed_is_answered(board: ServiceState) -> None:
    with serving(board, allowed_hosts=("Sidecar.internal",)) as server:
        assert ask(server, "/healthz", Host="sidecar.internal:80").code == 200
        assert ask(server, "/healthz", Host="sidecar.internal.evil.example").code == 421


def test_on_another_address_every_name_is_answered(board: ServiceState) -> None:
    with serving(board, "0.0.0.0") as server:
        assert server.address is not None
        server.address = ("127.0.0.1", server.address[1])
        assert ask(server, "/healthz", Host="sidecar").code == 200


def test_a_client_of_http_1_0_needs_no_host(server: Server) -> None:
    assert raw(server, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "host", ["", "localhost.evil.example", "evil.example:127.0.0.1", "[::1", "::1", "[evil]", "1.2.3"]
)
def test_what_only_looks_like_loopback_is_not_believed(host: str) -> None:
    assert not HostRule("127.0.0.1").accepts(host)


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_the_rule_is_strict_on_every_loopback_address(bound: str) -> None:
    assert not HostRule(bound).accepts("evil.example")


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.0.0.7", "fe80::1"])
def test_the_rule_is_open_elsewhere(bound: str) -> None:
    assert HostRule(bound).accepts("evil.example")


def test_a_taken_port_is_told_at_once(server: Server, board: ServiceState) -> None:
    assert server.address is not None
    port = server.address[1]
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: address already in use.*--listen"):
        Server(board, "127.0.0.1", port).start()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_host_is_told_at_once(board: ServiceState, host: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on {host}:0: .*--listen off"):
        Server(board, host, 0).start()


def test_the_port_is_free_again_after_stop(board: ServiceState) -> None:
    with serving(board) as server:
        assert ask(server, "/healthz").code == 200
        assert server.address is not None
        port = server.address[1]
    again = Server(board, "127.0.0.1", port)
    again.start()
    again.stop()
    again.stop()


def test_ipv6(board: ServiceState) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(board, "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert ask(server, "/healthz").code == 200
        assert ask(server, "/healthz", Host="evil.example").code == 421


def test_a_client_that_sends_half_a_request_is_cut_off(board: ServiceState) -> None:
    with serving(board, patience=0.2) as server:
        assert raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") == b""
        assert raw(server, b"") == b""


def test_a_client_that_takes_no_answer_is_cut_off(board: ServiceState) -> None:
    """Its window is full, so the server has an answer in memory that nobody takes."""
    with serving(board, patience=0.5) as server:
        assert server.address is not None
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(LIMIT)
            client.connect(server.address)
            request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with pytest.raises(ConnectionError):
                while True:  # The kernel buffers megabytes of requests before a send waits.
                    client.sendall(request)
        assert ask(server, "/healthz").code == 200


def test_idle_clients_do_not_keep_it_from_stopping(board: ServiceState) -> None:
    with serving(board) as server:
        assert server.address is not None
        clients = [socket.create_connection(server.address, timeout=LIMIT) for _ in range(20)]
        for client in clients[:10]:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        thread = server._thread
        assert thread is not None
        server.stop()
        assert not thread.is_alive()
        for client in clients:
            with client, suppress(ConnectionResetError):  # as the backlog is, which nobody accepted
                assert client.recv(1) == b""


def test_a_client_that_takes_no_answer_does_not_keep_it_from_stopping(board: ServiceState) -> None:
    with serving(board) as server, socket.socket() as client:
        assert server.address is not None
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)
        client.setblocking(False)
        assert server._uvicorn is not None
        connections = server._uvicorn.server_state.connections

        def stuck() -> bool:
            with suppress(BlockingIOError):
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            return any(one.flow is not None and one.flow.write_paused for one in list(connections))

        wait_until(stuck, "the server to have an answer that is not taken")
        thread = server._thread
        assert thread is not None
        server.stop()
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /" + b"a" * 3_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 3_000_000 + b"\r\n\r\n",
    ],
)
def test_nonsense_is_refused_and_the_next_is_answered(server: Server, request_bytes: bytes) -> None:
    try:
        found = raw(server, request_bytes + b"\r\n\r\n")
    except ConnectionError:  # closed with some of it unread
        found = b""
    assert found == b"" or found.startswith(b"HTTP/1.1 400 ")
    assert ask(server, "/healthz").code == 200


def test_nonsense_is_not_logged(board: ServiceState, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(board) as server:
        raw(server, b"nonsense\r\n\r\n")
    assert capfd.readouterr() == ("", "")


def test_an_error_of_ours_is_500_with_headers_and_one_line_in_the_log(
    board: ServiceState, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "picture", lambda: 1 / 0)
    with serving(board) as server:
        answer = ask(server, "/readyz")
        assert answer.code == 500
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"ZeroDivision" not in answer.body
    out, err = capfd.readouterr()
    assert "ZeroDivisionError" in out
    assert err == ""


PROGRAM = """
import signal, sys, threading
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.web.server import Server
board = ServiceState()
board.passed(PassCounts(), 0.1)
def stop(number, frame):
    board.stopping()
signal.signal(signal.SIGTERM, stop)
server = Server(board, "127.0.0.1", 0)
server.start()
print(server.address[1], signal.getsignal(signal.SIGTERM) is stop, flush=True)
sys.stdin.readline()
"""


def test_signals_stay_with_the_service_and_the_server_does_not_keep_it_from_its_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with reaped(process):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        port, untouched = process.stdout.readline().split()
        assert untouched == "True"
        server = Server(ServiceState(), "127.0.0.1", 0)
        server.address = ("127.0.0.1", int(port))
        assert ask(server, "/readyz").code == 200
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(server, "/readyz").code == 503, "readiness to fail")
        assert ask(server, "/readyz").json["reason"] == "stopping"
        with socket.create_connection(server.address, timeout=LIMIT):  # a client that stays
            process.stdin.close()
            process.stdin = None
            assert process.wait(LIMIT) == 0
        assert process.stderr.read() == ""


def test_many_ask_while_the_service_works(server: Server, board: ServiceState) -> None:
    wrong: list[object] = []

    def look() -> None:
        try:
            for path in PATHS * 3:
                answer = ask(server, path)
                if answer.code != 200:
                    wrong.append((path, answer.code))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        board.passed(PassCounts(collected=1), 0.1)
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:8788", ("127.0.0.1", 8788)),
        (" [::1]:8788 ", ("::1", 8788)),
        ("[::]:0", ("::", 0)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("localhost:65535", ("localhost", 65535)),
        ("side-car.internal:1", ("side-car.internal", 1)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_addresses_that_can_be_listened_on(text: str, wanted: object) -> None:
    assert parse_listen(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no port"),
        ("8788", "has no port"),
        ("localhost", "has no port"),
        ("localhost:http", "has no port"),
        ("localhost:-1", "has no port"),
        ("localhost:\u0661", "has no port"),
        ("::1", "in brackets"),
        ("::1:8788", "in brackets"),
        (":8788", "has no address"),
        ("localhost:65536", "at most 65535"),
        ("localhost:" + "9" * 5000, "at most 65535"),
        ("[127.0.0.1]:1", "not an IPv6 address"),
        ("[nonsense]:1", "not an IPv6 address"),
        ("256.0.0.1:1", "neither an address"),
        ("http://localhost:1", "in brackets"),
        ("local host:1", "neither an address"),
        ("-x:1", "neither an address"),
    ],
)
def test_addresses_that_cannot_are_refused_with_examples(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_listen(text)
    assert words in str(caught.value)
    assert "127.0.0.1:8788, [::1]:8788" in str(caught.value)


def test_the_readiness_that_is_documented_is_the_one_that_is_told(board: ServiceState, server: Server) -> None:
    json.loads(ask(server, "/readyz").body)
    assert set(ask(server, "/readyz").json) == {"status", "reasons", "timestamp"}
    board.fault("permission", "forbidden")
    assert set(ask(server, "/readyz").json) == {"status", "reason", "reasons", "timestamp"}
    assert set(ask(server, "/healthz").json) == {"status", "heard_seconds_ago", "timestamp"}
