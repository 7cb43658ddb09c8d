"""A project of Docker Compose: brought up, scaled, its containers killed, and torn down with all that it made.

Needs ``docker compose``, which `scripts/with-containers` provides. Under podman nothing runs health checks by itself:
there a thread does, so that ``depends_on`` and Traefik see what Docker's users see.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.containers.container_engine import SECONDS, Engine, wait_until

TICK = 1.0
"""Seconds between two looks for health checks that are due; what is healthy is asked at every fifth."""


@dataclass(frozen=True)
class Container:
    """A container of a project, as the engine saw it.

    Attributes:
        id: the whole one; its first 12 digits are the container's HOSTNAME.
        health: "healthy", "unhealthy", "starting", or "" without a health check.
        pid: of its first process, in this process's namespace; 0 when it does not run.
    """

    id: str
    name: str
    service: str
    state: str
    health: str
    exit_code: int
    pid: int

    @property
    def replica(self) -> str:
        """What it calls itself."""
        return self.id[:12]


class Project:
    """One compose project; use it in a ``with``, which tears it down.

    Args:
        engine: what `scripts/with-containers` found.
        directory: where the files are, and relative paths in them begin.
        files: names of the compose files; none: the ones that Compose takes by itself.
        name: of the project.
        environment: variables for the compose files, beside this process's own.
    """

    def __init__(
        self,
        engine: Engine,
        directory: Path,
        files: Sequence[str] = (),
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self.directory = directory
        self.name = name
        self.environment = {**os.environ, **(environment or {}), "COMPOSE_PROJECT_NAME": name}
        if files:
            self.environment["COMPOSE_FILE"] = ":".join(files)
        self._health = HealthChecks(engine, name) if engine.command == "podman" else None

    def __enter__(self) -> Self:
        if self._health:
            self._health.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                print(self.describe())
        finally:
            try:
                self.down()
            finally:
                if self._health:
                    self._health.stop()

    def compose(self, *arguments: str, seconds: float = 4 * SECONDS) -> str:
        """What ``docker compose ARGUMENTS`` prints on standard output.

        Raises:
            AssertionError: it failed, with what it said and how the containers are.
        """
        return self.run("docker", "compose", *arguments, seconds=seconds)

    def run(self, *command: str, seconds: float = 4 * SECONDS) -> str:
        """What a command prints that is run where the compose files are, and with their variables."""
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, (
            f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{self.describe()}"
        )
        return done.stdout

    def up(self, *services: str, wait: bool = False, seconds: float = 4 * SECONDS, **scale: int) -> None:
        """Bring services up, all of them if none is named; ``wait``: until they are healthy.

        Args:
            scale: how many replicas of which service: ``up(api=4)``.
        """
        options = [f"--scale={service}={count}" for service, count in scale.items()]
        self.compose("up", "-d", *options, *services, seconds=seconds)
        if wait:
            for service in services or self.services():
                self.wait_healthy(service, seconds=seconds)

    @property
    def is_alone(self) -> bool:
        """Nothing else has networks on this engine, as under podman, which has a namespace of its own."""
        return self._engine.command == "podman"

    def services(self) -> list[str]:
        return self.compose("config", "--services").split()

    def scale(self, service: str, count: int) -> None:
        """As many replicas; the newest go first, after their drain."""
        self.compose("up", "-d", "--no-deps", "--no-recreate", f"--scale={service}={count}", service)

    def ps(self, service: str | None = None) -> list[Container]:
        """The project's containers, also those that ended; of one service, or all."""
        filters = [f"--filter=label=com.docker.compose.project={self.name}"]
        if service:
            filters.append(f"--filter=label=com.docker.compose.service={service}")
        ids = self._engine.text("ps", "-aq", "--no-trunc", *filters).split()
        return [_container(about) for about in inspect(self._engine, ids)]

    def running(self, service: str) -> list[Container]:
        return [container for container in self.ps(service) if container.state == "running"]

    def healthy(self, service: str) -> list[Container]:
        return [container for container in self.running(service) if container.health in ("healthy", "")]

    def wait_healthy(self, service: str, count: int | None = None, seconds: float = 4 * SECONDS) -> list[Container]:
        """The containers of a service, when so many (default: all, but one at least) are healthy, or ended with 0."""

        def ready() -> bool:
            nonlocal found
            found = self.ps(service)
            good = [c for c in found if (c.health in ("healthy", "") if c.state == "running" else c.exit_code == 0)]
            return bool(found) and (len(good) == len(found) if count is None else len(self.healthy(service)) == count)

        found: list[Container] = []
        wait_until(ready, lambda: f"{service} is healthy: {found}\n{self.describe()}", seconds=seconds)
        return found

    def kill(self, container: Container) -> None:
        """SIGKILL to its first process, as when the kernel runs out of memory: the restart policy applies.

        After ``docker kill`` it would not: Docker takes that for a stop that somebody wanted.
        """
        assert container.pid > 1, f"not running: {container}"
        os.kill(container.pid, signal.SIGKILL)

    def logs(self, service: str) -> str:
        """What its containers printed, prefixed with their names."""
        return self.compose("logs", "--no-color", service)

    def exec(self, container: Container, *command: str) -> str:
        """What a command in a container prints."""
        return self._engine.text("exec", container.id, *command)

    def describe(self) -> str:
        """The containers, with the end of what each printed."""
        lines = []
        with contextlib.suppress(Exception):  # it is for messages about another failure
            for container in self.ps():
                lines.append(f"{container}")
                said = subprocess.run(
                    [self._engine.command, "logs", "--tail=30", container.id], capture_output=True, timeout=SECONDS
                )
                lines += (said.stdout + said.stderr).decode(errors="replace").splitlines()[-30:]
        return "\n".join(lines)

    def down(self) -> None:
        """Remove its containers, networks and volumes.

        Raises:
            AssertionError: something is left.
        """
        self.compose("down", "--volumes", "--remove-orphans", "--timeout=30")
        assert self.left_behind() == []

    def left_behind(self) -> list[str]:
        """What of the project the engine still has."""
        mine = f"--filter=label=com.docker.compose.project={self.name}"
        commands = (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"))
        return [f"{command[0]} {left}" for command in commands for left in self._engine.text(*command, mine).split()]


def inspect(engine: Engine, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What the engine knows of containers; one that was removed meanwhile is left out."""
    if not ids:
        return []
    done = subprocess.run([engine.command, "inspect", "--type=container", *ids], capture_output=True, timeout=SECONDS)
    with contextlib.suppress(json.JSONDecodeError):
        return list(json.loads(done.stdout))
    return [about for one in ids for about in inspect(engine, [one])] if len(ids) > 1 else []


def _container(about: dict[str, Any]) -> Container:
    state, labels = about["State"], about["Config"]["Labels"]
    health = state.get("Health") or state.get("Healthcheck") or {}
    return Container(
        id=about["Id"],
        name=about["Name"].removeprefix("/"),
        service=labels["com.docker.compose.service"],
        state=state["Status"],
        health=health.get("Status", ""),
        exit_code=state["ExitCode"],
        pid=state["Pid"],
    )


class HealthChecks:
    """Runs the health checks of a project's containers, in a thread of its own."""

    def __init__(self, engine: Engine, project: str) -> None:
        self._engine = engine
        self._filter = f"--filter=label=com.docker.compose.project={project}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health checks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(SECONDS)

    def _run(self) -> None:
        tick = 0
        while not self._stop.wait(TICK):
            tick += 1
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # a container went away meanwhile
                for about in inspect(self._engine, self._engine.text("ps", "-q", self._filter).split()):
                    health = about["State"].get("Health") or about["State"].get("Healthcheck") or {}
                    if about["Config"].get("Healthcheck") and (health.get("Status") != "healthy" or tick % 5 == 0):
                        self._engine.succeeds("healthcheck", "run", about["Id"])
