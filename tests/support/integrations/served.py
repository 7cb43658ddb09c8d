"""Real servers as child processes: started, asked, signalled, reaped, every wait bounded."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedvol import Volume
from support.installed import DIE_WITH_US
from support.processes import LIMIT, wait_until
from support.servers import free_port

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
TESTS = HERE.parents[1]
NAME = "3f9c0d1e2b4a"
CONNECTION_REFUSED = (ConnectionError, http.client.HTTPException, TimeoutError)


@dataclass
class Answer:
    code: int
    body: Any
    headers: dict[str, str]


@dataclass
class Place:
    """A directory with a volume and migrations for one replica."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)
    packages: tuple[Path, ...] = ()
    """Directories with packages that are imported instead of the installed ones."""

    def __post_init__(self) -> None:
        for name in ("volume", "migrations"):
            (self.path / name).mkdir()
        self.migration("001_orders.sql", "CREATE TABLE orders (id INT PRIMARY KEY);")

    def migration(self, name: str, text: str) -> None:
        (self.path / "migrations" / name).write_text(f"{text}\n")

    def fifo(self, name: str) -> None:
        os.mkfifo(self.path / name)

    @contextlib.contextmanager
    def reader(self, name: str) -> Iterator[None]:
        """For the block, somebody waits at the FIFO; at its end they go on."""
        opened: list[Any] = []
        opening = threading.Thread(target=lambda: opened.append((self.path / name).open("w")), daemon=True)
        opening.start()
        opening.join(LIMIT)
        assert opened, f"nobody came to {name}"
        try:
            yield
        finally:
            (self.path / name).unlink()
            opened[0].close()

    @property
    def runs(self) -> list[str]:
        """Who ran the migrations."""
        path = self.path / "runs"
        return path.read_text().splitlines() if path.exists() else []

    def is_alive(self) -> bool | None:
        return Volume(self.path / "volume").is_alive(NAME)

    def uvicorn(
        self,
        *options: str,
        program: tuple[str, ...] = ("uvicorn",),
        app: str = "shop_starlette:app",
        **environment: str,
    ) -> Served:
        return self._serve([*_program(program), app, *options], environment)

    def develop(self, program: str) -> Served:
        """A program that runs uvicorn by itself, as ``fastapi dev`` does."""
        return self._serve([sys.executable, program], {})

    def other(self, program: str, *options: str) -> Served:
        """A server that is none of the above; its options say where it listens, with PORT for the port."""
        return self._serve([*_program((program,)), *options], {})

    def gunicorn(self, *options: str, app: str = "shop_flask:app", **environment: str) -> Served:
        command = [str(BIN / "gunicorn"), app, "-c", str(HERE / "shop_gunicorn.py"), *options]
        return self._serve(command, environment)

    def _serve(self, command: list[str], environment: dict[str, str]) -> Served:
        port = free_port()
        where = ["-b", f"127.0.0.1:{port}"] if "gunicorn" in command[0] else ["--port", str(port)]
        if any("PORT" in option for option in command):
            command, where = [option.replace("PORT", str(port)) for option in command], []
        packages = os.pathsep.join(map(str, (*self.packages, HERE, TESTS)))
        more = {"SHOP": str(self.path), "HOSTNAME": NAME, "PYTHONPATH": packages, **self.environment, **environment}
        return Served([*command, *where], port, self.path, more)


class Served:
    """A server; use it in a ``with``, which kills and reaps it, and whatever it started."""

    def __init__(self, command: list[str], port: int, place: Path, environment: dict[str, str]) -> None:
        self.port = port
        self._log = place / f"log-{port}"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*DIE_WITH_US, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=place,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, path: str = "/", connection: http.client.HTTPConnection | None = None) -> Answer:
        """The answer to one request."""
        if connection is None:
            with contextlib.closing(self.connect()) as own:
                return self.ask(path, own)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        with contextlib.suppress(ValueError):
            return Answer(answer.status, json.loads(body), headers)
        return Answer(answer.status, body, headers)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)

    def code(self, path: str) -> int | None:
        """The status of the answer, or None where nobody listens."""
        try:
            return self.ask(path).code
        except CONNECTION_REFUSED:
            return None

    def reason(self) -> str | None:
        """Why it is not ready, ``ready``, or None where nobody listens."""
        try:
            answer = self.ask("/health/ready")
        except CONNECTION_REFUSED:
            return None
        return str(answer.body.get("reason", "ready"))

    def until(self, reason: str) -> None:
        """Wait for an answer of the readiness check."""

        def look() -> bool:
            assert self.process.poll() is None, self.log
            return self.reason() == reason or _later()

        wait_until(look, f"{reason}\n{self.log}")

    def pids(self, count: int) -> set[int]:
        """The processes that answer, asked until there are as many."""
        found: set[int] = set()

        def look() -> bool:
            with contextlib.suppress(*CONNECTION_REFUSED):
                found.add(self.ask("/").body["pid"])
            return len(found) == count or _later()

        wait_until(look, f"{count} workers, not {found}\n{self.log}")
        return found

    def children(self, word: str) -> list[int]:
        """The processes that it started with that word in their command line."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found if word in Path(f"/proc/{pid}/cmdline").read_text()]

    def tell(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status: negative for a signal."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end\n{self.log}") from None

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT)


class Slow:
    """A request that is under way: it waits at a FIFO."""

    def __init__(self, served: Served, place: Place, path: str = "/slow", fifo: str = "slow") -> None:
        self._path, self._fifo = path, fifo
        self._answers: list[Answer | Exception] = []
        self._served, self._place = served, place
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        try:
            self._answers.append(self._served.ask(self._path))
        except Exception as error:
            self._answers.append(error)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """For the block the server has taken the request and not answered it."""
        self._place.fifo(self._fifo)
        self._thread.start()
        with self._place.reader(self._fifo):
            assert not self._answers
            yield

    def answer(self) -> Answer:
        self._thread.join(LIMIT)
        (answer,) = self._answers
        assert isinstance(answer, Answer), answer
        return answer


def _later() -> bool:
    time.sleep(0.01)  # a request costs the server more than it costs us
    return False


def _program(names: tuple[str, ...]) -> list[str]:
    return [str(BIN / names[0]), *names[1:]]
