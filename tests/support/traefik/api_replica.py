"""Replicas of the sample API: real uvicorn processes, each with a container name of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.installed import DIE_WITH_US
from support.processes import LIMIT
from support.servers import free_port
from support.traefik.traefik_proxy import Answer, ask, wait_told

API = Path(__file__).parents[3] / "docs" / "examples" / "api"

# uvicorn as its command starts it, and one signal more. A replica that is killed between the head and the body of a
# response leaves its client with half of one, and nothing in front can hide that. A kill from within the event loop
# comes between two responses, at any step of the requests under way.
MAIN = """
import asyncio, os, signal, sys, uvicorn
class Server(uvicorn.Server):
    async def startup(self, *args, **options):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, os.kill, os.getpid(), signal.SIGKILL)
        await super().startup(*args, **options)
Server(uvicorn.Config("jobs_api.app:app", host="127.0.0.1", port=int(sys.argv[1]), timeout_keep_alive=75)).run()
"""


@dataclass(frozen=True)
class Mounts:
    """What the replicas share: a database and volumes.

    Attributes:
        url: of the database.
        root: of the volumes.
    """

    url: str
    root: Path

    @property
    def spool(self) -> Path:
        return self.root / "shared" / "spool"

    @property
    def collected(self) -> Path:
        return self.root / "shared" / "collected"

    def make(self) -> None:
        for path in (self.spool, self.collected, self.root / "cache", self.root / "data"):
            path.mkdir(parents=True)
        (self.root / "data" / "units.txt").write_text("km 1000\n")

    def environment(self) -> dict[str, str]:
        """Of each replica."""
        own = {
            "DATABASE_URL": self.url,
            "SPOOL_DIR": str(self.spool),
            "CACHE_DIR": str(self.root / "cache"),
            "DATA_DIR": str(self.root / "data"),
            "PYTHONPATH": os.pathsep.join([str(API), os.environ.get("PYTHONPATH", "")]),
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("SHAREDVOL_")} | own


class Replica:
    """A container of the sample API; it keeps its name and port when it is started again.

    Args:
        name: the container's.
        mounts: what it shares with the others.
        drain: seconds from SIGTERM to the end of accepting.
    """

    def __init__(self, name: str, mounts: Mounts, drain: float = 1.0) -> None:
        self.name = name
        self.port = free_port()
        self._log = mounts.root / f"{name}.console"
        self._environment = mounts.environment() | {"HOSTNAME": name, "DRAIN_SECONDS": str(drain)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once."""
        assert self._process is None, "runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_US, sys.executable, "-c", MAIN, str(self.port)],
                env=self._environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def await_ready(self) -> None:
        """As the health check of its container does it."""
        wait_told(self.is_ready, f"{self.name} ready")

    def is_ready(self) -> bool:
        """What ``/health/ready`` says, asked past Traefik."""
        assert self._process is not None and self._process.poll() is None, f"{self.name} ended:\n{self.console()}"
        return self.ask("GET", "/health/ready").status == 200

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One request past Traefik."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            return ask(connection, method, path, None if body is None else json.dumps(body))

    def console(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL between two responses, and reap."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        assert self._process.wait(LIMIT) == -signal.SIGKILL, self.console()
        self._process = None

    def terminate(self) -> None:
        """SIGTERM, as the engine sends it; returns at once."""
        assert self._process is not None
        self._process.terminate()

    def await_end(self) -> None:
        """After `terminate`: it ended by itself; reap it."""
        assert self._process is not None
        assert self._process.wait(LIMIT) in (0, -signal.SIGTERM), self.console()
        self._process = None

    def close(self) -> None:
        """Kill and reap what still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT)
            self._process = None
