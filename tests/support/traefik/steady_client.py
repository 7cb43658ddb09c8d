"""A client that never stops, and remembers every answer."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from support.processes import LIMIT
from support.traefik.traefik_proxy import Answer, ask, wait_told


@dataclass(frozen=True)
class Asked:
    """A request and its answer.

    Attributes:
        method: PUT or GET.
        job: the job's id.
        answer: what came.
    """

    method: str
    job: str
    answer: Answer

    @property
    def good(self) -> bool:
        """It was done, now or before."""
        return self.answer.status in (200, 201)


class SteadyClient:
    """Threads that PUT a job of their own and GET one that they put before, for ever. Use it in a ``with``.

    Args:
        port: of Traefik.
        name: what its jobs' names begin with.
        threads: how many.
        sticky: each thread keeps the cookie that it is given, as a browser does.
    """

    def __init__(self, port: int, name: str, threads: int, *, sticky: bool = False) -> None:
        self._port, self._name = port, name
        self._sticky = sticky
        self._count = threads
        self._stop = threading.Event()
        self._asked: list[Asked] = []  # appending is atomic
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT)
        cookie = ""
        order = json.dumps({"numbers": [1, number], "unit": "km"})
        try:
            for count in itertools.count():
                if self._stop.is_set():
                    return
                job = f"{self._name}{number}-{count}"
                for method, body in (("PUT", order), ("GET", None)):
                    answer = ask(connection, method, f"/jobs/{job}", body, cookie)
                    self._asked.append(Asked(method, job, answer))
                    if self._sticky and answer.cookie:
                        cookie = answer.cookie
                self._stop.wait(0.04)  # leaves the machine to the replicas
        finally:
            connection.close()

    def answers(self, since: int = 0) -> list[Asked]:
        """All, or those after the first ``since``."""
        return self._asked[since:]

    def await_more(self, count: int) -> list[Asked]:
        """The next ``count`` answers, or some more."""
        since = len(self._asked)
        wait_told(lambda: len(self._asked) >= since + count, f"{count} more answers")
        return self.answers(since)

    def await_served_by(self, *replicas: str) -> None:
        """Until each of those has answered something that was asked from now on."""
        since = len(self._asked)
        wait_told(lambda: set(replicas) <= set(shares(self.answers(since))), f"answers by {replicas}")

    def stays(self) -> list[list[str]]:
        """For each thread the replicas that answered it, one after the other."""
        threads = [[one for one in self._asked if one.job.startswith(f"{self._name}{n}-")] for n in range(self._count)]
        return [[key for key, _ in itertools.groupby(one.answer.replica for one in asked)] for asked in threads]

    def bad(self) -> list[Asked]:
        """What was no success: a 5xx, an error of the connection, or a job that was done and is not there."""
        return [one for one in self._asked if not one.good]

    def stop(self) -> None:
        """Finish what is under way."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(LIMIT)

    def __enter__(self) -> SteadyClient:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def shares(asked: list[Asked]) -> Counter[str]:
    """How many each replica answered."""
    return Counter(one.answer.replica for one in asked)
