"""Presence between containers: each with PID, UTS and mount namespaces of its own, on one volume."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.namespaces import beside, container

from sharedvol import Volume


def states(volume: Path) -> dict[str, tuple[bool, int | None]]:
    return {one.name: (one.alive, one.slot) for one in Volume(volume).replicas()}


def test_two_containers_are_two_replicas_and_see_each_other(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        assert (first.ask("os.getpid()"), second.ask("os.getpid()")) == (1, 1)
        assert (first.join(), second.join()) == (0, 1)
        expected = {"c1": (True, 0), "c2": (True, 1)}
        assert states(tmp_path) == expected
        for one in (first, second):
            assert one.ask("{r.name: (r.alive, r.slot) for r in volume.replicas()}") == {
                name: list(state) for name, state in expected.items()
            }


def test_a_killed_replica_is_dead_at_once(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        first.join()
        second.join()
        first.kill()
        assert second.ask("volume.is_alive('c1')") is False
        assert states(tmp_path) == {"c1": (False, 0), "c2": (True, 1)}


def test_a_stopped_replica_is_slow_and_alive(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        first.join()
        first.stop()
        assert second.ask("volume.is_alive('c1')") is True
        assert second.join() == 1
        assert states(tmp_path)["c1"] == (True, 0)
        with Volume(tmp_path).hold_dead("c1") as dead:
            assert dead is False
        first.signal(signal.SIGCONT)
        assert first.ask("volume.slot") == 0


def test_a_recreated_container_gets_the_slot_that_is_free(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second, container(tmp_path, "c3") as third:
        assert [one.join() for one in (first, second, third)] == [0, 1, 2]
        second.kill()
        with container(tmp_path, "f00dcafe0001") as anew:
            assert anew.join() == 1
            assert states(tmp_path)["f00dcafe0001"] == (True, 1)


def test_a_restarted_container_joins_under_its_name_again(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        assert (first.join(), second.join()) == (0, 1)
        first.kill()
        with container(tmp_path, "c9") as other, container(tmp_path, "c1") as again:
            assert (other.join(), again.join()) == (0, 2)
            assert states(tmp_path) == {"c1": (True, 2), "c2": (True, 1), "c9": (True, 0)}


def test_processes_of_one_container_share_its_slot_until_the_last_ends(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, beside(first, tmp_path) as worker, container(tmp_path, "c2") as other:
        assert (first.join(), worker.join(), other.join()) == (0, 0, 1)
        assert first.ask("volume._membership.leave()") is None
        assert other.ask("volume.is_alive('c1')") is True
        assert first.join() == 0
        worker.kill()
        assert other.ask("volume.is_alive('c1')") is True
        first.kill()
        assert other.ask("volume.is_alive('c1')") is False


@pytest.mark.parametrize(
    ("hostname", "environment", "arguments", "cause"),
    [
        ("api", {}, "", "`hostname:`, `network_mode: host`"),
        ("3f9c0d1e2b4a", {}, "", "`network_mode: service:...`"),
        ("whatever", {"HOSTNAME": "api"}, "", "HOSTNAME=api is set in the environment"),
        ("whatever", {}, "'api'", "passed to join()"),
    ],
)
def test_a_name_that_lives_in_another_container_is_refused_with_the_cause(
    tmp_path: Path, hostname: str, environment: dict[str, str], arguments: str, cause: str
) -> None:
    with (
        container(tmp_path, hostname, **environment) as first,
        container(tmp_path, hostname, **environment) as second,
    ):
        assert first.join(f"{arguments or 'None'}, purpose='web'") == 0
        refused = second.ask(f"volume.join({arguments})")
        assert refused["error"] == "DuplicateReplicaError"
        assert cause in refused["text"]
        assert "slot 0" in refused["text"] and "purpose 'web'" in refused["text"]
        first.kill()
        assert second.join(arguments) == 0


def test_a_read_only_volume_can_be_looked_at_and_not_joined(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        first.join()
        mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
        assert second.ask(f"os.system({mount!r})") == 0
        assert second.ask("[(r.name, r.alive, r.slot) for r in volume.replicas()]") == [["c1", True, 0]]
        assert second.ask("volume.is_alive('c1')") is True
        assert "mount the volume read-write" in second.ask("volume.join()")["text"]


def test_status_in_a_container_knows_its_own_processes_and_that_there_are_others(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        first.join()
        second.join()
        for name, one in (("c1", first), ("c2", second)):
            lock = tmp_path / f"{name}.lock"
            one.ask(f"globals().update(lock=FileLock({str(lock)!r})) or lock.acquire() is None")
        look = "__import__('sharedvol.volume.status').volume.status.read_status(str(volume.path)).as_dict()['locks']"
        assert {lock["path"]: (lock["state"], lock["holders"]) for lock in first.ask(look)} == {
            ".replicas/join.lock": ("free", []),
            "c1.lock": ("exclusive", [{"pid": 1, "replica": "c1"}]),
            "c2.lock": ("exclusive", []),
        }
