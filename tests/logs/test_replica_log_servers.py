"""The configurations of docs/logging.md with the real servers, each with two workers."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.logged import contents, lines
from support.processes import LIMIT, reaped, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "logging.md"
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
    """Start a server on sockets that are made before, so that no other process takes the port."""
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


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers as another user")
@pytest.mark.parametrize("volume_of", [0, NOBODY], ids=["volume-of-root", "volume-of-the-user"])
@pytest.mark.parametrize("early", [True, False], ids=["master-logs", "workers-log-first"])
def test_workers_that_change_their_user_go_on_after_rotation(volume_of: int, early: bool) -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own directories are closed to other users
        place = Path(made)
        place.chmod(0o755)
        spool = place / "spool"
        spool.mkdir()
        os.chown(spool, volume_of, volume_of)
        (place / "app.py").write_text(WSGI)
        configuration = _shown("logconfig_dict", spool).replace("workers = 4", "workers = 1")
        configuration = configuration.replace('logs",', 'logs", "max_bytes": 300,')
        if not early:  # then the first record of all comes from a worker that is not root
            configuration = configuration.replace(
                '"handlers": [], "level": "INFO", "propagate": True', '"handlers": []'
            )
            configuration = configuration.replace('"gunicorn.error": {"handlers": []}', '"gunicorn.error": OWN')
            configuration = "OWN = {'handlers': ['console'], 'level': 'INFO', 'propagate': False}\n" + configuration
        (place / "gunicorn.conf.py").write_text(configuration)
        with _serving(["gunicorn", "app:app", "--bind", "fd://FD", "--user", str(NOBODY)], place) as port:
            for number in range(20):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
                connection.request("GET", f"/{number}")
                connection.getresponse().read()
                connection.close()
        found = lines(spool)
        assert [number for number in range(20) if not any(f"app request /{number}" in line for line in found)] == []
        assert [number for number in range(20) if not any(f"GET /{number} HTTP" in line for line in found)] == []
        (own,) = spool.iterdir()
        assert [path.stat().st_uid for path in (own, own / "logs")] == [NOBODY, NOBODY]
