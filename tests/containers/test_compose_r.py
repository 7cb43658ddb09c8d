"""The example with replicas in R and in Python at once: they share migration lock, ledger, names and sidecar."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from support.containers.compose_client import Answer, Client, await_route
from support.containers.compose_images import build_r_api
from support.containers.compose_project import Project
from support.containers.compose_volume import Database, await_collected, collected, database, example
from support.containers.container_engine import Engine

import sharedvol

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ["SHAREDVOL_TEST_ENGINE"] == "podman" and not os.environ["SHAREDVOL_TEST_R_BASE"],
        reason="SHAREDVOL_TEST_R=no: there is no image with R",
    ),
]

ORDERS = 8


class Outcome:
    """What both kinds of replicas came to."""

    def __init__(self, engine: Engine, project: Project, port: int) -> None:
        project.up(api=2)  # all at once, on an empty database
        for service in ("api", "r-api", "traefik"):
            project.wait_healthy(service, 1 if service == "traefik" else 2)
        self.replicas = {one.replica: one.service for kind in ("api", "r-api") for one in project.running(kind)}
        names = {kind: {name for name, one in self.replicas.items() if one == kind} for kind in ("api", "r-api")}
        for prefix, kind in (("", "api"), ("/r", "r-api")):
            await_route(port, f"{prefix}/jobs/none", names[kind])
        with Client(port, threads=1) as python, Client(port, "/r", threads=1) as r:
            python.await_served_by(names["api"])
            r.await_served_by(names["r-api"])
            # The same orders are given to both: each is done once, by whoever is first.
            turns = [(python, r), (r, python)] * (ORDERS // 2)
            self.pairs = [
                (one.order(f"both-{n}", 0), other.order(f"both-{n}", 0)) for n, (one, other) in enumerate(turns)
            ]
        self.answers: dict[str, list[Answer]] = {"api": python.answers, "r-api": r.answers}
        self.database: Database = database(project, project.running("api")[0])
        sidecar = project.running("sidecar")[0]
        project.compose("stop", "api", "r-api")
        await_collected(project, sidecar)
        self.results, self.logs = (collected(engine, sidecar, kind) for kind in ("results", "logs"))


@pytest.fixture(scope="module")
def outcome(
    engine: Engine, compose_images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    directory = example(tmp_path_factory.mktemp("r") / "compose")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**compose_images, "R_API_IMAGE": build_r_api(engine), "HTTP_PORT": str(port)}
    files = ["compose.yaml", "compose.prod.yaml", "compose.r.yaml"]
    with Project(engine, directory, files, name="sv-r", environment=environment) as project:
        told = Outcome(engine, project, port)
    yield told
    engine.call("rmi", "-f", environment["R_API_IMAGE"])


def test_replicas_of_both_languages_answer(outcome: Outcome) -> None:
    for service, answers in outcome.answers.items():
        assert {outcome.replicas[one.replica] for one in answers if one.replica} == {service}
        assert [one for one in answers if not one.good] == []


def test_one_replica_of_all_has_migrated(outcome: Outcome) -> None:
    assert outcome.database.ledger == [("001_jobs.sql", 1), ("002_jobs_by_day.sql", 1)]


def test_order_that_both_are_given_is_done_once(outcome: Outcome) -> None:
    for one, other in outcome.pairs:
        assert json.loads(one.body) == json.loads(other.body)


def test_results_of_both_are_collected_under_names_of_one_form(outcome: Outcome) -> None:
    files = {path.split("/")[-1]: data for found in outcome.results.values() for path, data in found.items()}
    assert {file for _, file in outcome.database.jobs.values()} == set(files)
    for job, (replica, file) in outcome.database.jobs.items():
        assert sharedvol.parse_name(file, containers=[replica]).name == f"job_{job}.json"
        assert json.loads(files[file])["id"] == job
    assert {outcome.replicas[replica] for replica, _ in outcome.database.jobs.values()} == {"api", "r-api"}


def test_logs_of_both_are_collected(outcome: Outcome) -> None:
    for job, (replica, _) in outcome.database.jobs.items():
        text = b"".join(outcome.logs[replica].values()).decode()
        assert text.count(f"job {job} done\n") == 1
