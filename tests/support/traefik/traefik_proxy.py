"""A real Traefik on loopback, which reads the list of servers from a file as it reads it from Docker elsewhere."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.installed import DIE_WITH_US
from support.processes import LIMIT, wait_until
from support.servers import free_port

PROGRAM = Path(sys.executable).with_name("traefik")

RETRY: dict[str, Any] = {"attempts": 3, "initialInterval": "50ms", "status": ["502"], "maxRequestBodyBytes": 2**20}
PASSIVE: dict[str, Any] = {"failureWindow": "10s", "maxFailedAttempts": 2}
CHECK: dict[str, Any] = {"path": "/health/ready", "interval": "200ms", "timeout": "10s"}
NEVER: dict[str, Any] = {**CHECK, "interval": "600s"}
"""`RETRY` and `PASSIVE` are those of docs/traefik.md; checks come sooner, so that nobody waits, and may take longer."""

QUICK = (
    "--providers.providersThrottleDuration=10ms",
    "--serversTransport.forwardingTimeouts.dialTimeout=1s",
    "--serversTransport.forwardingTimeouts.idleConnTimeout=60s",
)
STICKY = {"name": "replica", "httpOnly": True, "sameSite": "lax"}


@dataclass(frozen=True)
class Balancing:
    """How Traefik treats the servers; what is None is left out."""

    check: Mapping[str, Any] | None = field(default_factory=lambda: CHECK)
    retry: Mapping[str, Any] | None = field(default_factory=lambda: RETRY)
    passive: Mapping[str, Any] | None = field(default_factory=lambda: PASSIVE)
    sticky: bool = False

    def configuration(self, ports: Iterable[int]) -> dict[str, Any]:
        """The dynamic configuration for servers on ``ports``."""
        balancer: dict[str, Any] = {"servers": [{"url": f"http://127.0.0.1:{port}"} for port in ports]}
        balancer |= {"healthCheck": dict(self.check)} if self.check else {}
        balancer |= {"passiveHealthCheck": dict(self.passive)} if self.passive else {}
        balancer |= {"sticky": {"cookie": STICKY}} if self.sticky else {}
        router: dict[str, Any] = {"rule": "PathPrefix(`/`)", "service": "jobs"}
        middlewares = {"again": {"retry": dict(self.retry)}} if self.retry else {}
        made: dict[str, Any] = {
            "routers": {"jobs": router | ({"middlewares": ["again"]} if middlewares else {})},
            "services": {"jobs": {"loadBalancer": balancer}},
        }
        return made | ({"middlewares": middlewares} if middlewares else {})


@dataclass(frozen=True)
class Answer:
    """What a client got; ``status`` is 0 and ``error`` is set where it was no whole response."""

    status: int
    replica: str = ""
    body: str = ""
    error: str = ""
    cookie: str = ""


class Traefik:
    """Traefik in a process of its own; use it in a ``with``.

    Args:
        directory: an empty one; holds the dynamic configuration and the log.
        flags: more than the entry point ``web`` and the file provider.
    """

    def __init__(self, directory: Path, flags: Iterable[str] = QUICK) -> None:
        self._directory = directory
        self._dynamic = directory / "dynamic"
        self._dynamic.mkdir()
        self._generations = itertools.count()
        self.port = free_port()
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *DIE_WITH_US,
                    str(PROGRAM),
                    f"--entryPoints.web.address=127.0.0.1:{self.port}",
                    f"--providers.file.directory={self._dynamic}",
                    "--api=true",
                    "--global.checkNewVersion=false",
                    "--global.sendAnonymousUsage=false",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def serve(self, ports: Iterable[int], how: Balancing | None = None) -> None:
        """Balance between the servers on ``ports`` from now on. Returns when the next request does."""
        self._apply((how or Balancing()).configuration(ports))

    def serve_nothing(self) -> None:
        """What is served comes from another provider."""
        self._apply({"routers": {}})

    def _apply(self, configuration: dict[str, Any]) -> None:
        generation = f"generation-{next(self._generations)}"
        # On the same entry point: what it tells is then what the next request meets.
        inside = {"rule": "PathPrefix(`/api/http`)", "service": "api@internal", "priority": 1000}
        new = self._dynamic / ".new"
        new.write_text(
            json.dumps({"http": configuration | {"routers": {**configuration["routers"], generation: inside}}})
        )
        os.replace(new, self._dynamic / "servers.yaml")
        wait_told(lambda: self.told(f"routers/{generation}@file") != {}, f"{generation}:\n{self.log()}")

    def up(self) -> set[int]:
        """The ports that it believes to be healthy."""
        return {int(url.rpartition(":")[2]) for url, state in self._told().items() if state == "UP"}

    def await_up(self, ports: Iterable[int]) -> None:
        """Until it believes exactly those to be healthy."""
        wanted = set(ports)
        wait_told(lambda: self.up() == wanted, f"{wanted} up")

    def _told(self) -> dict[str, str]:
        return dict(self.told("services/jobs@file").get("serverStatus") or {})

    def told(self, what: str) -> dict[str, Any]:
        """What it says of a router, service or middleware; nothing where it has none of that name."""
        answer = self.ask("GET", f"/api/http/{what}")
        return dict(json.loads(answer.body)) if answer.status == 200 else {}

    def log(self) -> str:
        """What it printed."""
        return (self._directory / "log").read_text(errors="replace")

    def ask(self, method: str, path: str, body: str | None = None, cookie: str = "") -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            return ask(connection, method, path, body, cookie)
        finally:
            connection.close()

    def close(self) -> None:
        """Kill and reap."""
        self._process.kill()
        self._process.wait(LIMIT)

    def __enter__(self) -> Traefik:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_told(condition: Callable[[], bool], what: str) -> None:
    """`wait_until` for what is asked over HTTP: that costs those who are asked, so less often."""

    def look() -> bool:
        if condition():
            return True
        time.sleep(0.02)
        return False

    wait_until(look, what)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None, cookie: str = ""
) -> Answer:
    """One request; an error of the connection is an answer, too."""
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Answer(0, error=f"{type(error).__name__}: {error}")
    given = (response.getheader("Set-Cookie") or "").partition(";")[0]
    return Answer(response.status, response.getheader("X-Replica") or "", text, cookie=given)
