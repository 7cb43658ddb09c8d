"""docs/examples/compose for real: one replica, four, one killed, two, and a client that never stops; then all gone."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.containers.compose_client import Answer, Client, await_route
from support.containers.compose_project import Container, Project
from support.containers.compose_volume import Database, await_collected, collected, database, example
from support.containers.container_engine import Engine, wait_until

pytestmark = pytest.mark.timeout(600)

FILES = ["compose.yaml", "compose.prod.yaml"]


@dataclass
class Story:
    """What a run came to."""

    answers: list[Answer]
    bad: list[Answer]
    killed: Container
    restarted: Container
    drained: Answer
    names: list[set[str]]
    database: Database
    results: dict[str, dict[str, bytes]]
    logs: dict[str, dict[str, bytes]]
    said: str
    rights: list[dict[str, str]]
    left: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(engine: Engine, compose_images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    directory = example(tmp_path_factory.mktemp("replicas") / "compose")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**compose_images, "HTTP_PORT": str(port)}
    with Project(engine, directory, FILES, name="sv-replicas", environment=environment) as project:
        told = _live_through(engine, project, port)
        everything = project.ps()
        project.down()
        told.left = _left(project, everything)
    yield told


def _live_through(engine: Engine, project: Project, port: int) -> Story:
    project.up(api=1)
    project.wait_healthy("api", 1)
    project.wait_healthy("traefik")
    names = [_names(project)]
    await_route(port, "/", names[0])
    with Client(port) as client:
        client.await_served_by(names[0])

        project.scale("api", 4)
        four = project.wait_healthy("api", 4)
        names.append(_names(project))
        client.await_served_by(names[1])
        rights = [_rights(container) for container in (*four, *project.running("sidecar"), *project.running("db"))]

        killed = four[0]
        project.kill(killed)
        restarted = _await_restart(project, killed)
        client.await_served_by(names[1])

        long = threading.Thread(target=lambda: drained.append(client.order("long", 4)))
        drained: list[Answer] = []
        long.start()
        project.scale("api", 2)
        long.join(60)
        names.append(_names(project))
        client.await_served_by(names[2], alone=True)

        project.run("./roll", "api")
        names.append(_names(project))
        client.await_served_by(names[3], alone=True)
    two = project.running("api")
    rows = database(project, two[0])
    said = project.logs("api")  # of those that are still there
    project.compose("stop", "api")
    sidecar = project.running("sidecar")[0]
    await_collected(project, sidecar)
    results, logs = (collected(engine, sidecar, kind) for kind in ("results", "logs"))
    return Story(
        client.answers, client.bad(), killed, restarted, drained[0], names, rows, results, logs, said, rights
    )  # fmt: skip


def _names(project: Project) -> set[str]:
    return {container.replica for container in project.running("api")}


def _await_restart(project: Project, killed: Container) -> Container:
    """The restart policy brings the same container back, with the same name."""
    found: list[Container] = []

    def back() -> bool:
        found[:] = [one for one in project.healthy("api") if one.id == killed.id and one.pid != killed.pid]
        return bool(found)

    wait_until(back, lambda: f"{killed.name} is back: {project.ps('api')}")
    return found[0]


def _rights(container: Container) -> dict[str, str]:
    """Of its first process, as the kernel has it."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{container.pid}/status").read_text().splitlines())
    root = next(
        line.split()
        for line in Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines()
        if line.split()[4] == "/"
    )
    return {
        "service": container.service,
        "user": status["Uid"].split()[0],
        "capabilities": status["CapEff"],
        "no_new_privileges": status["NoNewPrivs"],
        "root": root[5].split(",")[0],
    }


def _left(project: Project, containers: list[Container]) -> list[str]:
    """What is left of a project that was taken down."""
    mounts = Path("/proc/self/mountinfo").read_text()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    left = project.left_behind()
    left += [f"mount of {one.name}" for one in containers if one.id in mounts]
    left += [f"process of {one.name}" for one in containers if one.pid and _runs(one)]
    if project.is_alone:
        left += [line for line in links.splitlines() if "veth" in line or "podman" in line]
    return left


def _runs(container: Container) -> bool:
    try:
        return (
            container.id in Path(f"/proc/{container.pid}/cgroup").read_text()
            or container.id in Path(f"/proc/{container.pid}/mountinfo").read_text()
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_client_sees_no_failure_through_scale_up_kill_and_scale_down(story: Story) -> None:
    assert story.bad == []
    assert len(story.answers) > 100


def test_traefik_sends_requests_to_every_replica(story: Story) -> None:
    assert [len(names) for names in story.names] == [1, 4, 2, 2]
    shares = Counter(answer.replica for answer in story.answers)
    assert set(shares) == set[str]().union(*story.names)
    assert story.names[0] < story.names[1] > story.names[2]


def test_all_replicas_are_replaced_one_by_one(story: Story) -> None:
    assert story.names[3].isdisjoint(story.names[1])


def test_killed_replica_is_restarted_under_its_name(story: Story) -> None:
    assert story.restarted.replica == story.killed.replica
    assert story.restarted.pid != story.killed.pid


def test_order_that_outlasts_the_drain_is_answered(story: Story) -> None:
    assert story.drained.status == 201


def test_migrations_are_applied_once(story: Story) -> None:
    assert story.database.ledger == [("001_jobs.sql", 1), ("002_jobs_by_day.sql", 1)]


def test_every_answered_result_is_collected_once(story: Story) -> None:
    by_name = Counter(path.split("/")[-1] for files in story.results.values() for path in files)
    contents = {path.split("/")[-1]: data for files in story.results.values() for path, data in files.items()}
    answered = {job["id"]: job for job in (json.loads(one.body) for one in story.answers)}
    assert len(answered) > 50
    for job in answered.values():
        assert by_name[job["file"]] == 1, f"collected {by_name[job['file']]} times: {job}"
        assert json.loads(contents[job["file"]]) == job
    assert story.database.jobs == {job["id"]: (job["replica"], job["file"]) for job in answered.values()}
    # What a killed replica had published and not committed is collected, too; nothing else is, and no file twice.
    others = [path for path in contents if path not in {job["file"] for job in answered.values()}]
    assert all(f"_{story.killed.replica}_" in path for path in others), others
    assert set(by_name.values()) == {1}


def test_every_replicas_log_is_collected_whole(story: Story) -> None:
    done: Counter[tuple[str, str]] = Counter()
    for replica, files in story.logs.items():
        for data in files.values():
            assert data.endswith(b"\n")
            done.update((replica, line.split()[-2]) for line in data.decode().splitlines() if line.endswith(" done"))
    done_now = [(one.replica, one.path.split("/")[-1]) for one in story.answers if one.status == 201]
    assert len(done_now) > 50
    for replica, job in done_now:
        assert done[replica, job] == 1, f"job {job} was logged {done[replica, job]} times by {replica}"
    assert set(done.values()) == {1}
    # Who is killed may have committed a job and not said so yet: it was asked again, and answered 200.
    silent = {replica for job, (replica, _) in story.database.jobs.items() if not done[replica, job]}
    assert silent <= {story.killed.replica}
    assert set(story.logs) == story.names[1] | story.names[3]


def test_no_replica_has_more_rights_than_it_needs(story: Story) -> None:
    users = {"api": "65532", "sidecar": "65532", "db": "999"}
    for rights in story.rights:
        assert rights == {
            "service": rights["service"],
            "user": users[rights["service"]],
            "capabilities": "0" * 16,
            "no_new_privileges": "1",
            "root": "ro",
        }


def test_nothing_is_left_when_it_is_taken_down(story: Story) -> None:
    assert story.left == []
