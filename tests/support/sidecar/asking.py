"""A server for a board, and requests to it over a real connection."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web.server import Server
from support.processes import LIMIT


@dataclass(frozen=True)
class Answer:
    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(board: ServiceState, host: str = "127.0.0.1", **options: Any) -> Iterator[Server]:
    """A server on a free port."""
    server = Server(board, host, 0, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    assert server.address is not None
    connection = http.client.HTTPConnection(*server.address, timeout=LIMIT)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, told, answer.read())
    finally:
        connection.close()
