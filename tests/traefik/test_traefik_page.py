"""docs/traefik.md, taken at its word: Traefik understands each setting, and lists who is healthy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from support.traefik.docker_engine import Container, DockerEngine
from support.traefik.traefik_proxy import PASSIVE, RETRY, Traefik, wait_told
from support.traefik.traefik_stub import Stub

PAGE = (Path(__file__).parents[2] / "docs" / "traefik.md").read_text()
BLOCKS: list[dict[str, Any]] = [
    YAML(typ="safe").load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]
COMMAND: list[str] = next(block["command"] for block in BLOCKS if "command" in block)
LABELS: dict[str, str]
STICKY: dict[str, str]
LABELS, STICKY = (block["labels"] for block in BLOCKS if "labels" in block)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DockerEngine]:
    with DockerEngine(tmp_path / "docker.sock") as running:
        yield running


@pytest.fixture
def configured(engine: DockerEngine, tmp_path: Path) -> Iterator[Traefik]:
    """With the page's command, on a port of the test's own."""
    flags = [flag for flag in COMMAND if not flag.startswith("--entryPoints.web.address")]
    assert len(flags) == len(COMMAND) - 1
    directory = tmp_path / "traefik"
    directory.mkdir()
    with Traefik(directory, [*flags, f"--providers.docker.endpoint={engine.endpoint}"]) as running:
        running.serve_nothing()
        wait_told(lambda: engine.watched, f"Traefik listens:\n{running.log()}")
        yield running


def test_the_settings_on_the_page_are_understood_and_list_exactly_the_healthy_containers(
    engine: DockerEngine, configured: Traefik
) -> None:
    def await_listed(*addresses: str) -> None:
        wanted = {f"http://{address}:8000" for address in addresses}
        wait_told(lambda: _listed(configured) == wanted, f"{wanted}:\n{configured.log()}")

    for number in (1, 2):
        engine.start(Container(f"api-{number}", f"127.0.0.{number}", {**LABELS, **STICKY}))
    engine.turn("api-2", "healthy")
    await_listed("127.0.0.2")  # the first is starting
    engine.turn("api-1", "healthy")
    await_listed("127.0.0.1", "127.0.0.2")

    balancer = _balancer(configured)
    assert balancer["healthCheck"]["path"] == "/health/ready"
    assert (balancer["healthCheck"]["interval"], balancer["healthCheck"]["timeout"]) == ("1s", "3s")
    assert balancer["passiveHealthCheck"] == PASSIVE
    assert balancer["sticky"]["cookie"]["name"] == "replica"
    retry = configured.told("middlewares/api-retry@docker")["retry"]
    assert {name: retry[name] for name in RETRY} == RETRY
    assert retry.get("timeout", "0s") == "0s"
    assert configured.told("routers/api@docker")["middlewares"] == ["api-retry@docker"]
    assert "ERR" not in configured.log()

    engine.turn("api-2", "unhealthy")
    await_listed("127.0.0.1")
    engine.turn("api-2", "healthy")
    await_listed("127.0.0.1", "127.0.0.2")
    engine.die("api-1")
    await_listed("127.0.0.2")


def test_while_no_container_is_healthy_the_answer_is_503_and_one_that_starts_costs_nobody_an_answer(
    engine: DockerEngine, configured: Traefik, stub: Callable[[str], Stub]
) -> None:
    """For `allowEmptyServices` puts a server without an address into the list, which fails until its first check."""
    replica = stub("api-1")
    labels = {**LABELS, "traefik.http.services.api.loadbalancer.server.port": str(replica.port)}
    engine.start(Container("api-1", "127.0.0.1", labels))
    wait_told(lambda: configured.told("routers/api@docker") != {}, f"a route:\n{configured.log()}")
    assert {configured.ask("GET", "/").status for _ in range(8)} == {503}
    engine.turn("api-1", "healthy")
    wait_told(lambda: len(_listed(configured)) == 1, f"a server:\n{configured.log()}")
    engine.start(Container("api-2", "127.0.0.2", labels))
    wait_told(lambda: len(_balancer(configured)["servers"]) == 2, f"another, that starts:\n{configured.log()}")
    answers = [configured.ask("POST", "/", "body") for _ in range(8)]
    assert [(one.status, one.body) for one in answers] == [(200, "body")] * 8


def _listed(traefik: Traefik) -> set[str]:
    """The servers that have an address."""
    return {one["url"] for one in _balancer(traefik).get("servers", []) if "url" in one}


def _balancer(traefik: Traefik) -> dict[str, Any]:
    return dict(traefik.told("services/api@docker").get("loadBalancer", {}))
