"""As much of Docker's API as Traefik's Docker provider asks for: containers with labels, health and events."""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any


@dataclass
class Container:
    """A running container with a health check.

    Attributes:
        name: its name and id.
        address: on its network.
        labels: as Compose sets them.
        health: ``starting``, ``healthy`` or ``unhealthy``.
    """

    name: str
    address: str
    labels: dict[str, str]
    health: str = "starting"

    def as_json(self) -> dict[str, Any]:
        return {
            "Id": self.name,
            "Name": f"/{self.name}",
            "State": {"Status": "running", "Running": True, "Health": {"Status": self.health}},
            "HostConfig": {"NetworkMode": "net"},
            "Config": {"Labels": self.labels, "ExposedPorts": {}},
            "NetworkSettings": {"Ports": {}, "Networks": {"net": {"IPAddress": self.address, "NetworkID": "net"}}},
        }


class DockerEngine:
    """Answers on a Unix socket in threads; use it in a ``with``."""

    def __init__(self, socket: Path) -> None:
        self.endpoint = f"unix://{socket}"
        self.containers: dict[str, Container] = {}
        self._listeners: list[queue.SimpleQueue[bytes | None]] = []
        self._server = _Server(str(socket), _Handler)
        self._server.engine = self
        self._thread = threading.Thread(target=self._server.serve_forever)

    def start(self, container: Container) -> None:
        """It runs, and its health check has not succeeded yet."""
        self.containers[container.name] = container
        self._tell(container.name, "start")

    def turn(self, name: str, health: str) -> None:
        """Its health check says so from now on."""
        self.containers[name].health = health
        self._tell(name, f"health_status: {health}")

    def die(self, name: str) -> None:
        """It ended, and is removed."""
        del self.containers[name]
        self._tell(name, "die")

    def _tell(self, name: str, action: str) -> None:
        event = {"Type": "container", "Action": action, "status": action, "id": name, "Actor": {"ID": name}}
        for listener in self._listeners:
            listener.put(json.dumps(event).encode() + b"\n")

    @property
    def watched(self) -> bool:
        """Whether somebody waits for events; none is lost from then on."""
        return bool(self._listeners)

    def listen(self) -> queue.SimpleQueue[bytes | None]:
        """The events from now on; None is the last."""
        self._listeners.append(queue.SimpleQueue())
        return self._listeners[-1]

    def __enter__(self) -> DockerEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.put(None)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    engine: DockerEngine


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        _, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")  # without the version
        containers = self.server.engine.containers
        if path == "events":
            self._events()
        elif path == "containers/json":
            self._say([{"Id": name} for name in list(containers)])
        elif path.startswith("containers/") and (name := path.split("/")[1]) in containers:
            self._say(containers[name].as_json())
        else:
            self._say({"Version": "28.0", "ApiVersion": "1.44", "MinAPIVersion": "1.24", "Os": "linux"})

    do_HEAD = do_GET

    def _say(self, what: object) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Api-Version", "1.44")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _events(self) -> None:
        heard = self.server.engine.listen()
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        while (event := heard.get()) is not None:
            self.wfile.write(event)

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        pass
