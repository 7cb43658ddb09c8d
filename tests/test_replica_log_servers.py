"""The configurations of docs/logging.md with the real servers, each with two workers."""

from __future__ import annotations

import http.client
import itertools
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from logged import contents, lines
from processes import LIMIT, reaped, wait_until

PAGE = Path(__file__).parent.parent / "docs" / "logging.md"
WSGI = """
import logging, os
def app(environ, start_response):
    logging.getLogger("app").info("request %s", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
ASGI = """
import logging, os
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    logging.getLogger("app").info("request %s", scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def _shown(word: str, spool: Path) -> str:
    (code,) = (
        code for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.M) if word in code
    )
    return code.replace("/shared/spool", str(spool))


@contextmanager
def _serving(command: list[str], place: Path) -> Iterator[int]:
    """A server, whose sockets are made before it is, so that nobody else takes the port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.set_inheritable(True)
        full = [part.replace("FD", str(listening.fileno())) for part in command]
        process = subprocess.Popen(
            [sys.executable, "-m", *full], cwd=place, pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL
        )
        with reaped(process):
            try:
                yield listening.getsockname()[1]
            finally:
                process.send_signal(signal.SIGTERM)  # it takes its workers with it
                process.wait(LIMIT)


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_no_two_workers_write_one_file_at_a_time(tmp_path: Path, server: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    if server == "uvicorn":
        (tmp_path / "app.py").write_text(ASGI)
        exec(
            compile(
                _shown("logging.json", spool).replace('"logging.json"', f'"{tmp_path}/logging.json"'), "doc", "exec"
            ),
            {},
        )
        command = ["uvicorn", "app:app", "--fd", "FD", "--workers", "2", "--log-config", "logging.json"]
    else:
        (tmp_path / "app.py").write_text(WSGI)
        (tmp_path / "gunicorn.conf.py").write_text(
            _shown("logconfig_dict", spool).replace("workers = 4", "workers = 2")
        )
        command = ["gunicorn", "app:app", "--bind", "fd://FD"]
    with _serving(command, tmp_path) as port:
        asked: list[str] = []

        def both() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            connection.request("GET", f"/{len(asked)}")
            asked.append(connection.getresponse().read().decode())
            connection.close()
            return len(set(asked)) == 2

        wait_until(both, "an answer of each worker")
    found = lines(spool)
    for number, worker in enumerate(asked):
        (of_the_app,) = (line for line in found if line.endswith(f" INFO app request /{number}"))
        assert f" {worker} " in of_the_app
        assert sum(f"GET /{number} HTTP" in line for line in found) == 1
    # A process that ends leaves its file to one that opens its first later: one after the other, never in turns.
    for text in contents(spool).values():
        turns = [pid for pid, _ in itertools.groupby(line.split(" ")[2] for line in text.splitlines())]
        assert len(turns) == len(set(turns)), turns
