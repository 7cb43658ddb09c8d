"""A `run` process that serves HTTP, to test what it tells while it is disturbed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.processes import LIMIT, reaped, wait_until
from support.sidecar.running import Running
from support.sidecar.volume import Volume

PREAMBLE = """
import os, pathlib, sys, time
def say(event):
    os.write(1, b'{"event": "%s"}\\n' % event.encode())
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
import sharedvol_sidecar.service.service as service
"""
MAIN = """
from sharedvol_sidecar.cli import main
sys.exit(main())
"""
HASTE = "service.BACKOFF = (0.05, 0.2)\n"


class Served(Running):
    """Asked over HTTP."""

    url = ""

    def readiness(self) -> tuple[int, list[str]]:
        """The code of ``/readyz``, and the reasons."""
        code, body = self.ask("/readyz")
        return code, [one["reason"] for one in json.loads(body).get("reasons", [])]

    def ask(self, path: str) -> tuple[int, str]:
        found = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(found.hostname), found.port or 0, timeout=LIMIT)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def await_ready(self) -> None:
        wait_until(lambda: self.readiness() == (200, []), "readiness")

    def await_reason(self, *reasons: str) -> None:
        wait_until(lambda: self.readiness() == (503, list(reasons)), f"{reasons}")


@contextmanager
def service(
    volume: Volume,
    *args: str,
    shim: str = "",
    prefix: tuple[str, ...] = (),
    interval: str = "3600",
    first: str = "started",
    environment: dict[str, str] | None = None,
) -> Iterator[Served]:
    """`run` with ``shim`` before it, up to the event ``first``. It is killed at the end if it lives."""
    directories = ("--from", str(volume.spool), "--to", str(volume.collected), "--interval", interval)
    served_how = ("--quiet", "0", "--listen", "127.0.0.1:0", "--verbose")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHAREDVOL_")}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", PREAMBLE + shim + MAIN, "run", *directories, *served_how, *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**clean, **(environment or {})},
    )
    with reaped(process):
        served = Served(process)
        try:
            served.until(first)
            served.url = next((line["url"] for line in served.seen if line["event"] == "listening"), "")
            yield served
        finally:
            if process.poll() is None:
                served.end(signal.SIGKILL)


def settled(served: Served) -> dict[str, Any]:
    """SIGTERM, exit code 0, and the last line."""
    assert served.end() == 0
    return served.until("stopped")


class Mounts:
    """A mount namespace that a service is started in; `path` is a path as it sees it.

    Args:
        script: what is mounted there before, for sh.
    """

    def __init__(self, script: str) -> None:
        self.prefix = ("unshare", "-m", "--propagation", "private", "sh", "-c", f'{script} && exec "$@"', "sh")

    def run(self, served: Served, *command: object) -> None:
        """A command inside."""
        inside = ("nsenter", "-t", str(served.process.pid), "-m")
        subprocess.run([*inside, *map(str, command)], check=True, timeout=LIMIT)

    def path(self, served: Served, path: Path) -> Path:
        return Path(f"/proc/{served.process.pid}/root{path}")
