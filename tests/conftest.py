"""Markers, and fixtures with database servers, which start with the first test that needs one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from support.counted import summary
from support.installed import FLAVOURS, FUSE_MISSING, MYSQL_MISSING, NO_AUTHORITIES, R_MISSING, NotInstalled
from support.redis_servers import RedisServer
from support.servers import Database, Server

# A shell starts background jobs with SIGINT ignored, and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Else every command that a test starts compiles all of our modules: a quarter of what it costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "SHAREDVOL_TEST_ENGINE" not in os.environ:  # the engine's commands download
    os.environ.update(NO_AUTHORITIES)


hypothesis.settings.register_profile("sharedvol", deadline=None)  # a busy machine is slow
hypothesis.settings.load_profile("sharedvol")

TESTS = Path(__file__).parent
TORTURE = (
    "sidecar/torture",
    "sidecar/service/test_sidecar_service_leaks.py",
    "doctor/test_network_torture_nfs.py",
    "migrations/test_migrations_kill.py",
)
EACH_STEP = (
    "cache/test_cache_kill_points.py",
    "cli/test_interrupts.py",
    "locks/test_fence_kill_points.py",
    "logs/test_replica_log_interrupts.py",
    "logs/test_replica_log_planted.py",
    "volume/test_presence_kill_points.py",
)
"""Tests that stop a process at each of its steps."""
FOLDERS = {
    "slow": ("conformance", "r", "soak", "traefik", "upgrade", "containers", *EACH_STEP, *TORTURE),
    "server": ("integrations", "traefik", "logs/test_replica_log_servers.py"),
    "container": ("containers",),
    "torture": TORTURE,
}
"""The tests that have a marker because of where they are."""
SERVERS = frozenset(("_server_of", "private_server", "redis_server", "private_redis"))
"""Fixtures that start a server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the markers that follow from a test's folder or its fixtures."""
    for item in items:
        place = item.path.relative_to(TESTS)
        for marker, folders in FOLDERS.items():
            if any(place.is_relative_to(folder) for folder in folders):
                item.add_marker(marker)
        if not SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("server")


@pytest.fixture(scope="session")
def _server_of() -> Iterator[Callable[[str], Server]]:
    """The server of a flavour, the same for all tests: pytest itself would restart it when flavours alternate."""
    running: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:

        def server_of(flavour: str) -> Server:
            if flavour not in running:
                running[flavour] = stack.enter_context(_start(flavour))
            return running[flavour]

        yield server_of


@pytest.fixture(scope="session", params=FLAVOURS)
def server(request: pytest.FixtureRequest, _server_of: Callable[[str], Server]) -> Server:
    """A server that tests share: leave it running, and its settings as they were."""
    return _server_of(request.param)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """An empty database on `server`."""
    made = Database(server, server.create_database())
    yield made
    made.drop()


@pytest.fixture(params=FLAVOURS)
def private_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own: to stop, to kill, to configure."""
    with _start(request.param) as private:
        yield private


@pytest.fixture(params=["seen", "unseen"])
def any_fork(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `os.fork` what it is, or fork(2) as C code calls it, which runs none of Python's hooks.

    Use it where other threads are blocked or there are none: one that runs may hold a mutex of the interpreter, which
    then hangs in the child.
    """
    if request.param == "unseen":
        # PyDLL keeps the interpreter's lock over the call: else another thread might have it, and never in the child.
        monkeypatch.setattr(os, "fork", ctypes.PyDLL(None).fork)
    return str(request.param)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server that tests share: leave it running, and its settings as they were."""
    with RedisServer() as running:
        yield running


def _start(flavour: str) -> Server:
    try:
        return Server(flavour)
    except NotInstalled as error:
        if flavour == "mysql" and os.environ.get("SHAREDVOL_TEST_MYSQL") != "required":
            pytest.skip(str(error))
        pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say how much was tortured, and loudly, and last, what was left out: MariaDB alone says nothing about MySQL."""
    yield
    counted = summary(report for key in ("passed", "failed") for report in terminalreporter.getreports(key))
    if counted:
        terminalreporter.write_line(counted)
    reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
    for missing in (MYSQL_MISSING, R_MISSING, FUSE_MISSING):
        missed = sum(missing in reason for reason in reasons)
        if missed:
            terminalreporter.section(f"{missing}: {missed} skipped", sep="!", red=True, bold=True)
