"""`health`: one line and 0 or 1, whatever answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.processes import LIMIT, run_python
from support.sidecar.asking import serving
from support.sidecar.board_scene import Clocks

from sharedvol_sidecar.cli import main
from sharedvol_sidecar.config.listen import format_address
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web.server import Server


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def board(clocks: Clocks) -> ServiceState:
    board = clocks.board()
    board.passed(PassCounts(), 0.1)
    return board


@pytest.fixture
def server(board: ServiceState) -> Iterator[Server]:
    with serving(board) as server:
        yield server


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHAREDVOL_LISTEN", "SHAREDVOL_LISTEN_FILE", "SHAREDVOL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def health(*args: str, **environment: str) -> Result:
    result = CliRunner().invoke(main, ["health", *args], env=environment)
    assert result.output.count("\n") == 1, result.output
    return result


def listen(server: Server) -> str:
    assert server.address is not None
    return format_address(*server.address)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """Something else that listens: it says ``reply`` to the first who connects, and then waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        kept: list[socket.socket] = []

        def serve() -> None:
            connection, _ = listener.accept()
            kept.append(connection)
            connection.recv(4096)
            connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(LIMIT)
            for connection in kept:
                connection.close()


def test_alive(server: Server) -> None:
    result = health("--listen", listen(server))
    assert (result.exit_code, result.stdout) == (0, "alive\n")


def test_stalled(server: Server, clocks: Clocks) -> None:
    clocks.now += 100
    result = health("--listen", listen(server))
    assert result.exit_code == 1
    assert result.stderr.startswith("sharedvol-sidecar: stalled (HTTP 503 from 127.0.0.1:")


def test_a_service_that_is_not_ready_is_alive(server: Server, board: ServiceState) -> None:
    board.fault("destination_full", "no space\nleft \x1b[31m")
    assert health("--listen", listen(server)).exit_code == 0
    result = health("--ready", "--listen", listen(server))
    assert result.exit_code == 1
    assert "not ready; destination_full: no space\\nleft \\x1b[31m (HTTP 503" in result.stderr
    board.clear("destination_full")
    result = health("--ready", "--listen", listen(server))
    assert (result.exit_code, result.stdout) == (0, "ready\n")


def test_a_service_on_every_interface_is_asked_on_loopback(board: ServiceState) -> None:
    with serving(board, "0.0.0.0") as server:
        assert server.address is not None
        assert health("--listen", f"0.0.0.0:{server.address[1]}").exit_code == 0


def test_the_address_is_that_of_the_flag_else_the_environment_else_the_file(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(f'listen = "{listen(server)}"\nquiet = 2\n')
    assert health("--config", str(config)).exit_code == 0
    assert health(SHAREDVOL_CONFIG=str(config)).exit_code == 0
    assert health(SHAREDVOL_LISTEN=listen(server)).exit_code == 0
    assert "listen is off" in health("--config", str(config), SHAREDVOL_LISTEN="off").stderr
    assert health("--listen", listen(server), SHAREDVOL_LISTEN="off").exit_code == 0
    secret = config.with_name("listen")
    secret.write_text(f"{listen(server)}\n")
    assert health(SHAREDVOL_LISTEN_FILE=str(secret)).exit_code == 0
    assert "SHAREDVOL_LISTEN_FILE: cannot read the file" in health(SHAREDVOL_LISTEN_FILE="/nonexistent").stderr
    assert health("--listen", listen(server), SHAREDVOL_LISTEN_FILE="/nonexistent").exit_code == 0
    both = health(SHAREDVOL_LISTEN=listen(server), SHAREDVOL_LISTEN_FILE=str(secret))
    assert both.exit_code == 1
    assert "SHAREDVOL_LISTEN and SHAREDVOL_LISTEN_FILE are both set: leave one out" in both.stderr


@pytest.mark.parametrize("text", ["off", "nonsense", "127.0.0.1:99999"])
def test_a_wrong_address_is_1_and_not_the_2_that_docker_reserves(text: str) -> None:
    result = health("--listen", text)
    assert result.exit_code == 1
    assert result.stderr.startswith("sharedvol-sidecar: ")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "see --config" in health("--config", str(tmp_path / "none")).stderr


def test_nobody_there(server: Server) -> None:
    address = listen(server)
    server.stop()
    result = health("--listen", address)
    assert result.exit_code == 1
    assert f"no answer from {address}" in result.stderr


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_who_does_not_answer_is_not_waited_for(reply: bytes) -> None:
    with answering(reply) as address:
        result = health("--listen", address, "--timeout", "0.2")
    assert result.exit_code == 1
    assert f"no answer from {address}" in result.stderr


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"status": "good"}',
        b'HTTP/1.1 503 No\r\nContent-Length: 19\r\n\r\n{"status": "alive"}',
        b'HTTP/1.1 503 No\r\nContent-Length: 14\r\n\r\n{"reasons": 1}',
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    ],
)
def test_something_else_that_listens_there_is_not_the_service(reply: bytes) -> None:
    with answering(reply) as address:
        assert health("--listen", address).exit_code == 1


def test_it_starts_without_what_only_the_service_needs() -> None:
    heavy = "{'sqlalchemy', 'uvicorn', 'starlette', 'prometheus_client', 'jinja2', 'pydantic', 'structlog'}"
    code = f"import sys, sharedvol_sidecar.commands.health; print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code) == "[]"
