"""docs/examples/compose as `docker compose config` reads it: what the examples promise holds in each combination."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.containers.compose_volume import example

COMBINATIONS = {
    "compose.yaml": 1,
    "compose.yaml:compose.override.yaml": 2,
    "compose.yaml:compose.prod.yaml": 4,
    "compose.yaml:compose.prod.yaml:compose.sticky.yaml": 4,
    "compose.yaml:compose.prod.yaml:compose.r.yaml": 4,
    "compose.yaml:compose.prod.yaml:compose.r.yaml:compose.sticky.yaml": 4,
}
"""And how many replicas of the API there are."""

Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example(tmp_path_factory.mktemp("files") / "compose")


@pytest.fixture(params=COMBINATIONS)
def services(request: pytest.FixtureRequest, directory: Path) -> Services:
    return _config(directory, request.param)["services"]


def _config(directory: Path, files: str) -> dict[str, Any]:
    variables = {"COMPOSE_FILE": files} if files else {}
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=directory, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _replicated(services: Services) -> Services:
    return {name: one for name, one in services.items() if name in ("api", "r-api")}


def _seconds(text: str) -> float:
    """Of a duration as `config` writes it: 1m15s."""
    total, number = 0.0, ""
    for letter in text:
        if letter in "hms":
            total += float(number) * {"h": 3600, "m": 60, "s": 1}[letter]
            number = ""
        else:
            number += letter
    return total


@pytest.mark.parametrize("files", COMBINATIONS)
def test_api_has_as_many_replicas_as_its_files_say(directory: Path, files: str) -> None:
    api = _config(directory, files)["services"]["api"]
    assert api.get("deploy", {}).get("replicas", 1) == COMBINATIONS[files]


def test_without_files_named_it_is_the_one_for_development(directory: Path) -> None:
    assert _config(directory, "") == _config(directory, "compose.yaml:compose.override.yaml")


def test_nothing_ties_a_replicated_service_to_one_replica(services: Services) -> None:
    for one in _replicated(services).values():
        assert one.keys().isdisjoint({"container_name", "hostname", "ports", "network_mode"})
        assert "HOSTNAME" not in one["environment"]
        assert {mount["type"] for mount in one["volumes"]} == {"volume"}


def test_who_writes_the_shared_volume_has_one_user(services: Services) -> None:
    writers = {
        name for name, one in services.items() for mount in one.get("volumes", []) if mount["source"] == "shared"
    }
    assert {services[name]["user"] for name in writers - {"prepare"}} == {"65532:65532"}


def test_volumes_are_not_filled_from_an_image_and_data_is_read_only(services: Services) -> None:
    mounts = [(name, mount) for name, one in services.items() for mount in one.get("volumes", [])]
    for name, mount in mounts:
        if mount["type"] == "volume":
            assert mount["volume"]["nocopy"] is True
        if mount["source"] == "data":
            assert mount.get("read_only", False) is (name != "prepare")


def test_a_replica_has_time_to_migrate_and_to_stop(services: Services) -> None:
    for name, one in _replicated(services).items():
        check, environment = one["healthcheck"], one["environment"]
        assert _seconds(check["start_period"]) == 120 > float(environment["LOCK_TIMEOUT"])
        assert _seconds(check["start_interval"]) == 1
        longest = 60 if environment["DRAIN_SECONDS"] == "5" and name == "api" else 0
        assert _seconds(one["stop_grace_period"]) > float(environment["DRAIN_SECONDS"]) + longest
        assert one["init"] is True


def test_no_service_may_more_than_it_must(services: Services) -> None:
    for name, one in services.items():
        assert one["cap_drop"] == ["ALL"]
        assert one["read_only"] is True
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert bool(one.get("cap_add")) is (name == "prepare")


def test_connections_of_all_replicas_fit_the_server(services: Services) -> None:
    limit = next(int(word.split("=")[1]) for word in services["db"]["command"] if word.startswith("--max-connections="))
    api = services["api"]
    replicas = api.get("deploy", {}).get("replicas", 1) + 1  # one more while an update starts its first
    assert replicas * (int(api["environment"]["DATABASE_CONNECTIONS"]) + 2) < limit


@pytest.mark.parametrize("files", [files for files in COMBINATIONS if "prod" in files])
def test_on_a_server_replicas_are_limited_and_replaced_one_by_one(directory: Path, files: str) -> None:
    services = _config(directory, files)["services"]
    for one in _replicated(services).values():
        deploy = one["deploy"]
        assert int(deploy["resources"]["limits"]["memory"]) > 0
        update, rollback = deploy["update_config"], deploy["rollback_config"]
        assert (update["parallelism"], update["order"], update["failure_action"]) == (1, "start-first", "rollback")
        assert _seconds(update["delay"]) == 30
        assert (rollback["parallelism"], rollback["order"]) == (1, "start-first")


def test_cookie_is_an_option(directory: Path) -> None:
    label = "traefik.http.services.api.loadbalancer.sticky.cookie.name"
    for files in COMBINATIONS:
        labels = _config(directory, files)["services"]["api"]["labels"]
        assert (label in labels) is ("sticky" in files)
