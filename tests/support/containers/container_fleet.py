"""Replicas and sidecars in containers on one volume, and what came of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from support.containers import container_writer
from support.containers.container_engine import Engine, wait_until
from support.containers.container_judge import READ_VOLUME, Files, Written, read_volume

WORK = 170
"""Results that a replica has written, at least, when it is replaced."""


@dataclasses.dataclass
class Outcome:
    """What a run came to."""

    replicas: list[Written]
    killed: int
    summary: dict[str, int]
    events: list[dict[str, object]]
    files: Files


class Fleet:
    """The containers on one volume.

    Args:
        engine: runs them.
        image: of the sidecar.
        volume: its name.
        replicas, sidecars: how many run at a time.

    Attributes:
        image: what the next containers run.
    """

    def __init__(self, engine: Engine, image: str, volume: str, replicas: int, sidecars: int) -> None:
        self._engine, self.image = engine, image
        self._mount = f"--volume={volume}:/vol"
        self._ended: list[str] = []
        self._killed = 0
        self.sidecars = [self._start_sidecar() for _ in range(sidecars)]
        self.replicas = [self._start_replica() for _ in range(replicas)]

    def _start_sidecar(self) -> str:
        settings = ["--env=SHAREDVOL_QUIET=0.5", "--env=SHAREDVOL_INTERVAL=1"]
        return self._engine.start(self._mount, *settings, self.image)

    def _start_replica(self) -> str:
        source = Path(container_writer.__file__).read_text()
        return self._engine.start(self._mount, "--entrypoint=python", self.image, "-c", source)

    def _events(self, sidecar: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._engine.logs(sidecar)]

    def _at_work(self, replica: str, sidecar: str) -> bool:
        """The replica has written, and the sidecar has collected."""
        done = sum(line.startswith("done") for line in self._engine.logs(replica))
        return done >= WORK and any(event["event"] in ("summary", "collected") for event in self._events(sidecar))

    def kill_and_recreate(self) -> None:
        """Kill the sidecar and the replica that have lived longest, and start others."""
        self._replace(kill=True)

    def stop_and_recreate(self) -> None:
        """Stop the sidecar and the replica that have lived longest, as an update does, and start others."""
        self._replace(kill=False)

    def _await_work(self, replica: str, sidecar: str) -> None:
        wait_until(
            lambda: self._at_work(replica, sidecar),
            lambda: f"at work: {self._engine.logs(replica)[-1:]}, {self._engine.logs(sidecar)[-3:]}",
        )

    def _replace(self, kill: bool) -> None:
        sidecar, replica = self.sidecars.pop(0), self.replicas.pop(0)
        self._await_work(replica, sidecar)
        for container in (sidecar, replica):
            if kill:
                self._engine.kill(container)
            else:
                assert self._engine.stop(container) == 0
        self._killed += kill
        self._ended.append(replica)
        self.sidecars.append(self._start_sidecar())
        self.replicas.append(self._start_replica())

    def finish(self) -> Outcome:
        """Stop a sidecar amid its work, the replicas, the other sidecars; ``once`` collects what they left."""
        first, *others = self.sidecars
        self._await_work(self.replicas[0], first)  # process 1 ignores a signal before its handler is there
        for container in (first, *self.replicas, *others):
            assert self._engine.stop(container) == 0
        events = [event for sidecar in self.sidecars for event in self._events(sidecar)]
        summary = json.loads(self._engine.run(self._mount, self.image, "once", "--json", "--quiet=0.5"))
        archive = self._engine.run(f"{self._mount}:ro", "--entrypoint=python", self.image, "-c", READ_VOLUME)
        replicas = {one: Written.parse(self._engine.logs(one)) for one in (*self._ended, *self.replicas)}
        for container, written in replicas.items():
            assert container.startswith(written.host), "its HOSTNAME is its short id"
        return Outcome(list(replicas.values()), self._killed, summary, events, read_volume(archive))
