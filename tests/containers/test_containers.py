"""Real containers on one named volume: replicas and two sidecars, of which some are killed and recreated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import container_writer
import pytest
from container_engine import Engine, wait_until
from container_judge import READ_VOLUME, Files, Written, faults, read_volume

pytestmark = pytest.mark.timeout(300)

REPLICAS, SIDECARS, ROUNDS = 3, 2, 4
WORK = 170
"""Results that a replica has written, at least, when it is killed."""


@dataclasses.dataclass
class Outcome:
    """What a run came to."""

    replicas: list[Written]
    killed: int
    summary: dict[str, int]
    events: list[dict[str, object]]
    files: Files


class Fleet:
    """The containers on one volume."""

    def __init__(self, engine: Engine, image: str, volume: str) -> None:
        self._engine, self._image = engine, image
        self._mount = f"--volume={volume}:/vol"
        self._dead: list[str] = []
        self.sidecars = [self.start_sidecar() for _ in range(SIDECARS)]
        self.replicas = [self.start_replica() for _ in range(REPLICAS)]

    def start_sidecar(self) -> str:
        settings = ["--env=SHAREDVOL_QUIET=0.5", "--env=SHAREDVOL_INTERVAL=1"]
        return self._engine.start(self._mount, *settings, self._image)

    def start_replica(self) -> str:
        source = Path(container_writer.__file__).read_text()
        return self._engine.start(self._mount, "--entrypoint=python", self._image, "-c", source)

    def events(self, sidecar: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._engine.logs(sidecar)]

    def written(self, replica: str) -> Written:
        return Written.parse(self._engine.logs(replica))

    def at_work(self, replica: str, sidecar: str) -> bool:
        """The replica has written, and the sidecar has collected."""
        done = sum(line.startswith("done") for line in self._engine.logs(replica))
        return done >= WORK and any(event["event"] in ("summary", "collected") for event in self.events(sidecar))

    def kill_and_recreate(self) -> None:
        """The sidecar and the replica that have lived longest."""
        sidecar, replica = self.sidecars.pop(0), self.replicas.pop(0)
        wait_until(
            lambda: self.at_work(replica, sidecar),
            lambda: f"at work: {self._engine.logs(replica)[-1:]}, {self._engine.logs(sidecar)[-3:]}",
        )
        for container in (sidecar, replica):
            self._engine.kill(container)
        self._dead.append(replica)
        self.sidecars.append(self.start_sidecar())
        self.replicas.append(self.start_replica())

    def finish(self) -> Outcome:
        """Stop a sidecar amid its work, the replicas, the other sidecar; what they left is collected by ``once``."""
        first, *others = self.sidecars
        for container in (first, *self.replicas, *others):
            assert self._engine.stop(container) == 0
        events = [event for sidecar in self.sidecars for event in self.events(sidecar)]
        summary = json.loads(self._engine.run(self._mount, self._image, "once", "--json", "--quiet=0.5"))
        archive = self._engine.run(f"{self._mount}:ro", "--entrypoint=python", self._image, "-c", READ_VOLUME)
        replicas = {container: self.written(container) for container in (*self._dead, *self.replicas)}
        for container, written in replicas.items():
            assert container.startswith(written.host), "its HOSTNAME is its short id"
        return Outcome(list(replicas.values()), len(self._dead), summary, events, read_volume(archive))


@pytest.fixture(scope="module")
def outcome(engine: Engine, image: str) -> Iterator[Outcome]:
    volume = engine.text("volume", "create", f"--label={engine.label}")
    fleet = Fleet(engine, image, volume)
    for _ in range(ROUNDS):
        fleet.kill_and_recreate()
    yield fleet.finish()
    engine.clean_up()


def test_nothing_is_lost_doubled_cut_or_invented_when_containers_are_killed_and_recreated(outcome: Outcome) -> None:
    assert faults(outcome.replicas, outcome.files, outcome.killed) == []


def test_every_replica_was_process_one_of_a_container_of_its_own(outcome: Outcome) -> None:
    assert len({replica.host for replica in outcome.replicas}) == REPLICAS + ROUNDS
    assert {replica.pid for replica in outcome.replicas} == {1}
    assert all(replica.done for replica in outcome.replicas)


def test_without_any_capability_every_file_is_judged_by_a_lease(outcome: Outcome) -> None:
    assert outcome.summary["unleased"] == outcome.summary["failed"] == 0
    told = {event["event"] for event in outcome.events}
    assert told.isdisjoint({"unleased", "scan_only", "fault", "failed", "refused", "unmatched"})


def _lost(files: Files, path: str) -> None:
    del files[path]


def _doubled(files: Files, path: str) -> None:
    files[f"{path}~2"] = files[path]


def _cut(files: Files, path: str) -> None:
    files[path] = files[path][:-1]


def _not_collected(files: Files, path: str) -> None:
    files["spool/results/job"] = b""


def _invented(files: Files, path: str) -> None:
    files[f"{path}~2"] = b"?"


@pytest.mark.parametrize("kind", ["results", "logs"])
@pytest.mark.parametrize("damage", [_lost, _doubled, _cut, _not_collected, _invented])
def test_the_judge_sees_damage(outcome: Outcome, damage, kind: str) -> None:  # type: ignore[no-untyped-def]
    replica, files = outcome.replicas[-1], dict(outcome.files)  # one that ended by itself: it has no part of a file
    damage(files, next(path for path in files if path.startswith(f"collected/{kind}/") and f"/{replica.host}/" in path))
    assert faults(outcome.replicas, files, outcome.killed) != []
