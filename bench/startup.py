"""N replicas that start at once on one empty schema: ours, the bare fixed GET_LOCK, Alembic and yoyo.

A replica whose start fails is started again, a little later each time, as an engine does with ``restart: on-failure``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import migrators
from bench.figures import Measured, at_most, reading, rounds, say
from bench.scripts import ADDING, PREPARE, Scripts, write
from bench.together import together

# The servers are those that the tests start.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

ROUNDS = 3
COUNTS = (1, 4, 16)
FILES = 20

_AGAIN = 0.1
"""Seconds before the second start, doubled for each further one."""

_TRIES = 6
_LIMIT = 60
"""Seconds that one start may take."""

Migrate = Callable[[str, Scripts], None]


@dataclass(frozen=True)
class Outcome:
    """One round.

    Attributes:
        seconds: until the last replica was ready, or given up.
        failures: what each failed start said.
        never: replicas that were given up.
        twice: migrations that were begun more than once.
        wrong: how often the data was changed too often, or too rarely.
    """

    seconds: float
    failures: list[str]
    never: int
    twice: int
    wrong: int


def startup(directory: Path, scale: float) -> Iterator[Measured]:
    """Each on MariaDB, all without TLS."""
    from support.installed import NotInstalled, programs
    from support.servers import Server

    try:
        programs("mariadb")
    except NotInstalled as error:
        say(str(error))
        return
    scripts = write(directory / "scripts", max(5, int(FILES * scale)))
    missing = 0
    with Server("mariadb") as server:
        kinds = _warm(server, scripts)
        for count in COUNTS if scale >= 0.5 else (4,):
            say(f"startup: {count} at once: {', '.join(kinds)}")
            runs: dict[str, list[Outcome]] = {name: [] for name in kinds}
            for _ in range(rounds(ROUNDS, scale)):
                for name, migrate in kinds.items():
                    runs[name].append(_round(server, migrate, scripts, count))
            missing += sum(len(one.failures) + one.never + one.twice + one.wrong for one in runs[OURS])
            for name, outcomes in runs.items():
                yield from _readings(name, count, outcomes)
    yield at_most("startup: ours, failed starts and migrations run twice", missing, 0, f"{ROUNDS} rounds of each")


def _warm(server: Any, scripts: Scripts) -> dict[str, Migrate]:
    """What is installed. Each has run once: what a replica imports at its start is not counted."""
    there = {}
    for name, (migrate, needs) in KINDS.items():
        if needs and not importlib.util.find_spec(needs):
            say(f"{needs} is not installed, and left out")
            continue
        migrate(server.url(_database(server)), scripts)
        there[name] = migrate
    return there


def _database(server: Any) -> str:
    database: str = server.create_database()
    for statement in PREPARE:
        server.query(statement, database)
    return database


def _readings(name: str, count: int, outcomes: list[Outcome]) -> Iterator[Measured]:
    table = f"startup-{count}"
    said = Counter(text for outcome in outcomes for text in outcome.failures)
    most = said.most_common(1)[0][0] if said else ""
    yield reading(table, name, "seconds", (outcome.seconds for outcome in outcomes))
    yield reading(table, name, "failed", (len(outcome.failures) for outcome in outcomes), most)
    yield reading(table, name, "twice", (outcome.twice for outcome in outcomes))
    yield reading(table, name, "wrong", (outcome.wrong for outcome in outcomes))
    yield reading(table, name, "never", (outcome.never for outcome in outcomes))


def _round(server: Any, migrate: Migrate, scripts: Scripts, count: int) -> Outcome:
    """On a schema of its own."""
    database = _database(server)
    seconds, failures, never = _start(migrate, server.url(database), scripts, count)
    ran = Counter(row[0] for row in server.query("SELECT name FROM ran", database))
    wrong = abs(int(server.query(ADDING, database)[0][0]) - scripts.additions)
    server.query(f"DROP DATABASE {database}")
    return Outcome(seconds, failures, never, sum(times > 1 for times in ran.values()), wrong)


def _start(migrate: Migrate, url: str, scripts: Scripts, count: int) -> tuple[float, list[str], int]:
    """Release ``count`` supervised replicas together, and wait for all; seconds, failed starts, given up."""
    with tempfile.TemporaryDirectory() as told:
        taken, codes = together(count, lambda number: _supervise(migrate, url, scripts, Path(told, f"{number}.json")))
        failures = [text for file in sorted(Path(told).iterdir()) for text in json.loads(file.read_text())]
    return taken, failures, sum(code != 0 for code in codes)


def _supervise(migrate: Migrate, url: str, scripts: Scripts, told: Path) -> int:
    """Start it until it is ready; the file says what each failed start said."""
    failures: list[str] = []
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_AGAIN * 2 ** (attempt - 1))
        heard, say_it = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(_LIMIT)
                logging.disable()
                migrate(url, scripts)
                code = 0
            except BaseException as error:
                os.write(say_it, _words(error).encode())
            finally:
                os._exit(code)
        os.close(say_it)
        with open(heard, encoding="utf-8", errors="replace") as answer:
            text = answer.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        failures.append(text or f"ended with {code}")
        told.write_text(json.dumps(failures))
    return code


def _words(error: BaseException) -> str:
    """The first line of what a failed start would log; 4,096 bytes fit into a pipe at once."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:1000]


OURS = "sharedvol"
KINDS: dict[str, tuple[Migrate, str]] = {
    OURS: (migrators.ours, ""),
    "GET_LOCK, fixed name": (migrators.fixed, ""),
    "Alembic, no lock": (migrators.alembic, "alembic"),
    "Alembic under sharedvol": (migrators.alembic_under_ours, "alembic"),
    "yoyo": (migrators.yoyo, "yoyo"),
}
"""How each migrates, and the package that it needs."""
