"""`Service` by itself: readiness, checks, forks, starts and stops."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import LIMIT, Child, idle, run_forked, run_python, wait_until

from sharedvol import DuplicateReplicaError, FileLock, MigrationCoordinator, Volume, worker_token
from sharedvol.integrations import Service
from sharedvol.integrations.drain import SigtermGate
from sharedvol.migrations import PythonMigrations


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    path = tmp_path / "volume"
    path.mkdir()
    return Volume(path)


@pytest.fixture
def coordinator(tmp_path: Path) -> MigrationCoordinator:
    return _coordinator(tmp_path, lambda connection: None)


def _coordinator(place: Path, migration: Callable[[object], object]) -> MigrationCoordinator:
    return MigrationCoordinator(f"sqlite:///{place / 'shop.db'}", PythonMigrations({"001": migration}))


@pytest.fixture
def stopping() -> Iterator[list[Service]]:
    services: list[Service] = []
    yield services
    for service in services:
        service.stop()


def _reason(service: Service) -> str | None:
    report = service.ready()
    assert report.code == (200 if report.ok else 503)
    reason = report.body.get("reason")
    assert (reason is None) == report.ok
    return reason


def test_without_a_coordinator_it_is_ready_when_it_has_started(volume: Volume) -> None:
    service = Service(volume=volume, purpose="web")
    assert _reason(service) == "starting"
    service.start()
    assert _reason(service) is None
    body = service.ready().body
    assert (body["status"], body["slot"], body["replica"], body["checks"]) == ("ready", 0, service.replica, {})
    assert "database" not in body
    service.begin_drain()
    assert _reason(service) == "draining"
    service.stop()
    assert _reason(service) == "starting"
    assert volume.is_alive(str(service.replica)) is False


def test_nothing_at_all_is_needed() -> None:
    service = Service()
    service.start(wait=True)
    assert service.ready().ok
    assert (service.slot, service.volume) == (None, None)
    service.stop()


def test_not_ready_before_its_own_run_has_ended(tmp_path: Path, stopping: list[Service]) -> None:
    goes_on = threading.Event()
    service = Service(coordinator=_coordinator(tmp_path, lambda connection: goes_on.wait(LIMIT)))
    stopping.append(service)
    service.start()
    wait_until(lambda: service.ready().body["state"] == "migrating", "the migration")
    seen = [_reason(service) for _ in range(5)]
    assert service.live().ok
    goes_on.set()
    service.start(wait=True)
    assert _reason(service) is None
    assert set(seen) == {"migrations_pending"}
    assert service.ready().body["newly_applied"] == 1


def test_who_leaves_the_migrations_to_others_waits_for_them(tmp_path: Path, stopping: list[Service]) -> None:
    coordinator = _coordinator(tmp_path, lambda connection: None)
    service = Service(coordinator=coordinator, migrate=False, max_age=0)
    stopping.append(service)
    service.start(wait=True)
    assert _reason(service) == "migrations_pending"
    _coordinator(tmp_path, lambda connection: None).run()
    assert _reason(service) is None


def test_a_failed_migration_is_kept_and_raised_to_who_waits(tmp_path: Path) -> None:
    def fail(connection: object) -> None:
        raise RuntimeError("no such luck")

    service = Service(coordinator=_coordinator(tmp_path, fail), exit_on_failure=False)
    with pytest.raises(Exception, match="no such luck"):
        service.start(wait=True)
    report = service.ready()
    assert (report.code, report.body["reason"]) == (503, "migration_error")
    assert "no such luck" in report.body["error"]
    assert "no such luck" in str(service.failed)


def test_a_failure_in_the_background_ends_the_process_with_what_was_printed(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys, threading
from sharedvol import MigrationCoordinator
from sharedvol.integrations import Service
from sharedvol.migrations import PythonMigrations
if len(sys.argv) > 1:
    def fail(connection):
        raise RuntimeError("no such luck")
    service = Service(coordinator=MigrationCoordinator("sqlite:///" + sys.argv[1], PythonMigrations({"001": fail})))
    print("not flushed", end="")
    service.start()
    threading.Event().wait(60)
else:
    done = subprocess.run([sys.executable, "-c", os.environ["CODE"], os.environ["DB"]], capture_output=True, text=True)
    assert "no such luck" in done.stderr, done.stderr
    print(done.returncode, done.stdout)
"""
    assert run_python(code, CODE=code, DB=str(tmp_path / "shop.db")) == "3 not flushed"


def test_checks_say_why(stopping: list[Service]) -> None:
    answers: dict[str, Callable[[], object]] = {"yes": lambda: True, "none": lambda: None, "asks": lambda: 1}
    service = Service(checks=answers)
    service.start()
    stopping.append(service)
    assert service.ready().body["checks"] == {"yes": "ok", "none": "ok", "asks": "ok"}

    def raises() -> None:
        raise OSError("disk is gone")

    def leaves() -> None:
        raise SystemExit(1)

    async def waits() -> bool:
        return True

    for check, words in ((raises, "OSError: disk is gone"), (leaves, "SystemExit"), (lambda: "", "returned ''")):
        service = Service(checks={"yes": lambda: True, "disk": check})
        service.start()
        stopping.append(service)
        report = service.ready()
        assert (report.code, report.body["reason"]) == (503, "disk")
        assert report.body["checks"]["disk"] == words
    with pytest.raises(TypeError, match="'disk' must be a function"):
        Service(checks={"disk": waits})
    service = Service(checks={"disk": lambda: waits()})
    service.start()
    stopping.append(service)
    assert "awaitable" in service.ready().body["checks"]["disk"]


def test_a_check_that_hangs_is_asked_once(stopping: list[Service]) -> None:
    ends, asked = threading.Event(), []

    def hangs() -> None:
        asked.append(1)
        ends.wait(LIMIT)

    service = Service(checks={"disk": hangs}, check_timeout=0.01, max_age=0)
    service.start()
    stopping.append(service)
    assert {_reason(service) for _ in range(5)} == {"disk"}
    assert len(asked) == 1
    ends.set()
    wait_until(lambda: service.ready().ok, "an answer of the check")


def test_a_drain_that_begins_while_it_is_asked_is_told(stopping: list[Service]) -> None:
    service = Service(checks={"late": lambda: service.begin_drain()})
    service.start()
    stopping.append(service)
    assert _reason(service) == "draining"


def test_start_and_stop_can_be_repeated(volume: Volume) -> None:
    service = Service(volume=volume)
    for _ in range(2):
        service.start()
        service.start()
        assert service.slot == 0
        service.begin_drain()
        service.stop()
        service.stop()
        assert service.slot is None
        assert not service.draining


def test_stop_does_not_wait_for_a_start(volume: Volume) -> None:
    with volume.join("other"):
        pass
    service = Service(volume=volume)
    with FileLock(volume.path / ".replicas" / "join.lock"):
        starting = threading.Thread(target=service.start)
        starting.start()
        wait_until(lambda: service._lock.locked(), "a start")
        service.stop()
    starting.join(LIMIT)
    assert not starting.is_alive()
    assert not service.started
    assert volume.is_alive(str(service.replica)) is False


def test_a_name_that_is_taken_fails_the_start(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "web")
    with Volume(volume.path).join():
        known = volume.path / ".replicas" / "names" / "web.json"
        known.write_text(json.dumps({**json.loads(known.read_text()), "mount_namespace": 1}))
        with pytest.raises(DuplicateReplicaError):
            Service(volume=volume).start()


@pytest.mark.usefixtures("any_fork")
def test_a_forked_child_begins_anew_and_knows_that_the_migrations_are_done(
    volume: Volume, tmp_path: Path, stopping: list[Service]
) -> None:
    asked: list[int] = []
    coordinator = _coordinator(tmp_path, lambda connection: asked.append(1))
    service = Service(volume=volume, coordinator=coordinator)
    service.start(wait=True)
    stopping.append(service)
    token = worker_token()

    def child() -> tuple[object, ...]:
        before = (service.started, service.slot, _reason(service))
        service.start()
        after = (service.slot, _reason(service), worker_token() != token)
        service.stop()
        return before, after, len(asked)

    assert run_forked(child) == ((False, None, "starting"), (0, None, True), 1)
    assert volume.is_alive(str(service.replica))
    assert service.ready().ok


def test_a_child_of_one_that_migrates_runs_them_itself(tmp_path: Path, stopping: list[Service]) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    service = Service(coordinator=_coordinator(tmp_path, lambda connection: begun.set() or goes_on.wait(LIMIT)))
    stopping.append(service)
    service.start()
    assert begun.wait(LIMIT)

    def child(connection: object) -> None:
        goes_on.set()
        service.start(wait=True)  # its parent has the lock
        assert service.ready().ok

    with Child(child):
        assert _reason(service) == "migrations_pending"
        goes_on.set()
        service.start(wait=True)
    assert service.ready().ok


def test_sigterm_of_a_forked_child_is_its_own() -> None:
    """It has the handler of its parent, and no thread that would let the signal through."""

    def work(connection: object) -> None:
        gate = SigtermGate(1000.0, lambda: True)
        assert gate.install()
        with Child(lambda inner: (inner.send("here"), idle())) as child:
            assert child.receive() == "here"
            os.kill(child.pid, signal.SIGTERM)
            assert child.status is None
            child._killed = True
            assert child.wait() == -signal.SIGTERM
        gate.remove()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    with Child(work):
        pass


def test_without_another_handler_sigterm_ends_the_process_after_the_drain() -> None:
    def work(connection: object) -> None:
        service = Service(drain=0.05)
        service.start()
        assert service.drain_on_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        assert service.draining
        idle()

    with Child(work) as child:
        child._killed = True
        assert child.wait() == -signal.SIGTERM


def test_wrong_times_are_refused() -> None:
    for name in ("drain", "check_timeout", "max_age"):
        with pytest.raises(ValueError, match=name):
            Service(**{name: -1})
        with pytest.raises(ValueError, match=name):
            Service(**{name: float("nan")})
