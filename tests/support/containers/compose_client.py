"""A client that never stops, and never asks twice: what a user of the API behind Traefik sees."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from support.containers.container_engine import SECONDS, wait_until


@dataclass(frozen=True)
class Answer:
    """What came; ``status`` 0 and ``error`` where nothing whole came."""

    method: str
    path: str
    status: int
    replica: str = ""
    body: str = ""
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status in (200, 201)


def ask(connection: http.client.HTTPConnection, method: str, path: str, order: Any = None) -> Answer:
    """One request, one answer; a connection that broke is opened anew at the next one."""
    try:
        body = None if order is None else json.dumps(order)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Answer(method, path, 0, error=repr(error))
    return Answer(method, path, response.status, response.headers.get("X-Replica", ""), text)


def await_route(port: int, path: str, replicas: set[str]) -> None:
    """Traefik has read the labels of one of those: what it says before that is no failure of a replica."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(connection):
        wait_until(
            lambda: ask(connection, "GET", path).replica in replicas,
            lambda: f"an answer to {path} by {replicas}: {ask(connection, 'GET', path)}",
        )


class Client:
    """Threads that order jobs and look at them, for ever. Use it in a ``with``.

    Args:
        port: of Traefik, on loopback.
        prefix: of the paths.
        threads: how many.
    """

    def __init__(self, port: int, prefix: str = "", threads: int = 3) -> None:
        self._port, self._prefix = port, prefix
        self._stop = threading.Event()
        self.answers: list[Answer] = []  # appending is atomic
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        for count in itertools.count():
            if self._stop.wait(0.05):  # leaves the machine to the replicas
                break
            path = f"{self._prefix}/jobs/t{number}-{count}"
            order = {"numbers": [number, count], "seconds": 0.1}
            self.answers.append(ask(connection, "PUT", path, order))
            self.answers.append(ask(connection, "GET", path))
        connection.close()

    def order(self, name: str, seconds: float) -> Answer:
        """One long order, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds + SECONDS)
        answer = ask(connection, "PUT", f"{self._prefix}/jobs/{name}", {"numbers": [1], "seconds": seconds})
        connection.close()
        self.answers.append(answer)
        return answer

    def await_served_by(self, replicas: set[str], *, alone: bool = False) -> None:
        """Until all of those have answered, of what was asked from now on; ``alone``: and of late nobody else."""
        since = len(self.answers)

        def served() -> bool:
            names = [answer.replica for answer in self.answers[since:]]
            return replicas <= set(names) and (not alone or set(names[-50:]) == replicas)

        wait_until(served, lambda: f"answers by {replicas}: {self.answers[since:][-3:]}")

    def bad(self) -> list[Answer]:
        """What was no success: a 5xx, a broken connection, or a job that was done and is not there."""
        return [answer for answer in self.answers if not answer.good]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
