"""Four replicas of the sample API behind Traefik, on MariaDB, with the sidecar beside: no client sees what happens."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from support.processes import LIMIT, reaped
from support.servers import Database
from support.sidecar.volume import CLI, run_cli
from support.traefik.api_replica import API, Mounts, Replica
from support.traefik.steady_client import Asked, SteadyClient, shares
from support.traefik.traefik_proxy import Balancing, Traefik, wait_told

MIGRATIONS = sorted(path.name for path in (API / "jobs_api" / "migrations").glob("*.sql"))


class Deployment:
    """The replicas, and the list of them that Traefik has: by hand, what Docker does with labels and health."""

    def __init__(self, mounts: Mounts, traefik: Traefik, stack: contextlib.ExitStack) -> None:
        self._mounts, self._traefik, self._stack = mounts, traefik, stack
        self._listed: list[Replica] = []

    def create(self, name: str) -> Replica:
        """A new container, started."""
        made = Replica(name, self._mounts)
        self._stack.callback(made.close)
        made.start()
        return made

    def add(self, replica: Replica) -> None:
        """Its container is healthy: the list has it from now on."""
        self._listed.append(replica)
        self._list()

    def remove(self, replica: Replica) -> None:
        """Its container is gone."""
        self._listed.remove(replica)
        self._list()

    def _list(self) -> None:
        # Sticky for those who send the cookie back; the others are spread as without it.
        self._traefik.serve((one.port for one in self._listed), Balancing(sticky=True))

    def start_up(self, names: list[str]) -> Iterator[Replica]:
        """All at once; each as soon as it is ready, and in the list."""
        waiting = [self.create(name) for name in names]
        while waiting:
            wait_told(lambda: any(one.is_ready() for one in waiting), "one more that is ready")
            for one in [one for one in waiting if one.is_ready()]:
                waiting.remove(one)
                self.add(one)
                yield one

    def replace(self, old: Replica, new: Replica) -> None:
        """Start first: the new one is ready and in the list before the old one is told to stop, and drains."""
        new.await_ready()
        self.add(new)
        old.terminate()
        old.await_end()
        self.remove(old)


@pytest.fixture
def deployment(mounts: Mounts, traefik: Traefik) -> Iterator[Deployment]:
    with contextlib.ExitStack() as stack:
        yield Deployment(mounts, traefik, stack)


@contextlib.contextmanager
def sidecar_beside(mounts: Mounts) -> Iterator[None]:
    """`run`, until the end of the block."""
    directories = ["--from", str(mounts.spool), "--to", str(mounts.collected)]
    with (mounts.root / "sidecar.log").open("wb") as log:
        process = subprocess.Popen(
            [*CLI, "run", *directories, "--quiet", "0.2", "--interval", "1", "--listen", "off"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    with reaped(process):
        yield
        process.terminate()
        assert process.wait(LIMIT) == 0, (mounts.root / "sidecar.log").read_text()


@pytest.mark.timeout(300)
def test_a_client_sees_no_error_while_replicas_start_die_and_are_replaced(
    database: Database, mounts: Mounts, deployment: Deployment, traefik: Traefik
) -> None:
    names = ["a1", "a2", "a3", "a4"]
    with database.server.log() as log, sidecar_beside(mounts), contextlib.ExitStack() as clients:
        # Start-up: Traefik begins with the first that is ready.
        starting = deployment.start_up(names)
        replicas = [next(starting)]
        client = clients.enter_context(SteadyClient(traefik.port, "free", 3))
        sticky = clients.enter_context(SteadyClient(traefik.port, "kept", 1, sticky=True))
        replicas.extend(starting)
        client.await_served_by(*names)
        created = [text for text in log.statements() if "CREATE TABLE jobs " in text]

        assert_even(client.await_more(160), names)

        killed = replicas[0]
        interrupted = LongOrders(traefik, killed, "interrupted")
        killed.kill()
        long = interrupted.done()
        assert killed.name not in shares(long)
        client.await_more(20)
        traefik.await_up(one.port for one in replicas[1:])
        killed.start()
        killed.await_ready()
        client.await_served_by(*names)

        new = deployment.create("b1")
        for number, old in enumerate(replicas):
            following = deployment.create(f"b{number + 2}") if number < 3 else None  # so that nobody waits for it
            deployment.replace(old, new)
            replicas[number], new = new, following or new
        client.await_served_by("b1", "b2", "b3", "b4")

        drained = replicas.pop()
        finished = LongOrders(traefik, drained, "finished")
        drained.terminate()
        drained.await_end()
        assert set(shares(finished.done())) == {drained.name}
        long += finished.done()
        client.await_more(20)
        client.stop()
        sticky.stop()
        for one in replicas:
            one.terminate()
        for one in replicas:
            one.await_end()

    assert client.bad() == sticky.bad() == []
    assert_moved_only_when_gone(sticky.stays(), killed.name)
    assert len(created) == 1
    assert database.query("SELECT filename, success FROM schema_version ORDER BY 1") == [(n, 1) for n in MIGRATIONS]
    assert_collected(mounts, database, [*client.answers(), *sticky.answers(), *long])


def assert_even(asked: list[Asked], names: list[str]) -> None:
    """Without failures, round robin gives each the same; half of that is far outside of what turns can make of it."""
    served = shares(asked)
    assert set(served) == set(names)
    assert min(served.values()) >= len(asked) / len(names) / 2, served


def assert_moved_only_when_gone(stays: list[list[str]], killed: str) -> None:
    """A client with the cookie stays until its replica is gone, so it never comes back to one."""
    for replicas in stays:
        assert replicas[0] == killed  # the only one there was when it came
        assert len(set(replicas)) == len(replicas) > 1, replicas


class LongOrders:
    """Three orders of seconds each, which are under way in ``replica`` when this returns."""

    def __init__(self, traefik: Traefik, replica: Replica, name: str) -> None:
        self._traefik = traefik
        self._answers: list[Asked] = []
        cookies = (one.cookie for one in iter(lambda: traefik.ask("GET", "/"), None) if one.replica == replica.name)
        cookie = next(cookies)  # takes turns, so this ends
        jobs = [f"{name}-{number}" for number in range(3)]
        self._threads = [threading.Thread(target=self._order, args=(job, cookie)) for job in jobs]
        for thread in self._threads:
            thread.start()
        wait_told(lambda: all(f" job {job} begins" in replica.console() for job in jobs), f"{jobs} under way")

    def _order(self, job: str, cookie: str) -> None:
        body = json.dumps({"numbers": [1], "seconds": 1.5})
        self._answers.append(Asked("PUT", job, self._traefik.ask("PUT", f"/jobs/{job}", body, cookie)))

    def done(self) -> list[Asked]:
        """When all are answered."""
        for thread in self._threads:
            thread.join(LIMIT)
        assert [one.answer.status for one in self._answers] == [201] * len(self._threads), self._answers
        return self._answers


def assert_collected(mounts: Mounts, database: Database, asked: list[Asked]) -> None:
    """Each result that a client was told of, and each log line, is in the destination once; nothing is left behind."""
    done = run_cli("once", "--from", str(mounts.spool), "--to", str(mounts.collected), "--quiet", "0")
    assert done.returncode == 0, done.stderr
    told = {one.job: json.loads(one.answer.body) for one in asked}
    rows = {row[0]: row[1:] for row in database.query("SELECT id, replica, file, total FROM jobs")}
    results = [path for path in (mounts.collected / "results").rglob("*") if path.is_file()]
    found = Counter(path.name for path in results)
    contents = {path.name: json.loads(path.read_text()) for path in results}
    assert rows.keys() == told.keys()
    for job, answer in told.items():
        assert rows[job] == (answer["replica"], answer["file"], answer["total"])
        assert (found[answer["file"]], contents[answer["file"]]) == (1, answer)
    left = [path for path in mounts.spool.glob("*/results/*") if path.is_file()]
    left += [path for path in mounts.spool.glob("*/logs/*") if path.is_file()]
    assert left == []
    # A job that was under way in the replica that was killed may have been published there, and done again elsewhere.
    assert max(Counter(content["id"] for content in contents.values()).values()) <= 2
    assert Counter(content["id"] for content in contents.values()).total() - len(told) <= 7
    assert_logged(mounts, asked)


def assert_logged(mounts: Mounts, asked: list[Asked]) -> None:
    """The line of each job, in the log of the replica that did it; it is written before the answer."""
    said: Counter[tuple[str, str]] = Counter()
    for path in (mounts.collected / "logs").rglob("*"):
        if path.is_file():
            replica = path.relative_to(mounts.collected / "logs").parts[1]
            said.update((replica, job) for job in re.findall(r" job (\S+) done$", path.read_text(), re.MULTILINE))
    for one in asked:
        if one.answer.status == 201:
            assert said[one.answer.replica, one.job] == 1, one
    assert set(said.values()) == {1}
