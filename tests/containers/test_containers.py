"""Real containers on one named volume: replicas and two sidecars, of which some are killed and recreated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers.container_engine import Engine
from support.containers.container_fleet import Fleet, Outcome
from support.containers.container_judge import Files, faults

pytestmark = pytest.mark.timeout(300)

REPLICAS, SIDECARS, ROUNDS = 3, 2, 4


@pytest.fixture(scope="module")
def outcome(engine: Engine, image: str) -> Iterator[Outcome]:
    volume = engine.text("volume", "create", f"--label={engine.label}")
    fleet = Fleet(engine, image, volume, REPLICAS, SIDECARS)
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


def test_two_runs_on_one_machine_do_not_share_their_networks(engine: Engine) -> None:
    """A project's networks have the same names in each run, and end with it."""
    if engine.command != "podman":
        pytest.skip("networks belong to the machine's own engine")
    name = f"net-{engine.label[-12:]}"
    engine.call("network", "create", name)
    try:
        assert not Path("/etc/containers/networks", f"{name}.json").exists()
    finally:
        engine.call("network", "rm", name)


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
