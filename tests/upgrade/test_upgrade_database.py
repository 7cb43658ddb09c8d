"""The release before and this one share MariaDB and MySQL: named locks, tokens, the ledger of migrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import Database
from support.soak.releases import Release
from support.upgrade.release_agent import Agent, AgentError

Pair = tuple[Release, Release]
Start = Callable[..., Agent]

LOCK = "from sharedvol.locks.mysql import NamedLock\nlock = NamedLock(url, 'report', fenced=True, purpose='report')\n"
MIGRATE = """
from sharedvol.migrations import MigrationCoordinator
status = MigrationCoordinator(url, directory).run()
result = [status.pending_migrations, status.newly_applied]
"""


def test_a_named_lock_excludes_both_and_its_tokens_grow(database: Database, pair: Pair, start: Start) -> None:
    agents = [start(release) for release in pair]
    tokens = []
    for number in range(6):
        mine, other = agents[number % 2], agents[(number + 1) % 2]
        mine.run(f"{LOCK}lock.acquire(timeout=0)\ntoken = lock.token", url=database.url)
        with pytest.raises(AgentError, match=r"^LockTimeout"):
            other.run(f"{LOCK}lock.acquire(timeout=0)", url=database.url)
        assert other.run("found = lock.holder(); result = [found.purpose]") == ["report"]
        tokens.append(mine.run("result = token\nlock.release()"))
    assert tokens == sorted(set(tokens))


def test_what_one_release_applied_is_not_applied_by_the_other(
    database: Database, tmp_path: Path, pair: Pair, start: Start
) -> None:
    directory = tmp_path / "sql"
    directory.mkdir()
    (directory / "001.sql").write_text("CREATE TABLE log (step INT);\nINSERT INTO log VALUES (1);\n")
    first, second = map(start, pair)
    assert first.run(MIGRATE, url=database.url, directory=directory) == [0, 1]
    (directory / "002.sql").write_text("INSERT INTO log VALUES (2);\n")
    assert second.run(MIGRATE, url=database.url, directory=directory) == [0, 1]
    assert first.run(MIGRATE, url=database.url, directory=directory) == [0, 0]
    assert database.query("SELECT step FROM log ORDER BY step") == [(1,), (2,)]


def test_a_file_that_stopped_half_way_is_resumed_by_the_other_release(
    database: Database, tmp_path: Path, pair: Pair, start: Start
) -> None:
    directory = tmp_path / "sql"
    directory.mkdir()
    done = "CREATE TABLE log (step INT);\nINSERT INTO log VALUES (1);\n"
    (directory / "001.sql").write_text(f"{done}INSERT INTO missing VALUES (2);\n")
    first, second = map(start, pair)
    with pytest.raises(AgentError):
        first.run(MIGRATE, url=database.url, directory=directory)
    assert database.query("SELECT step FROM log") == [(1,)]
    (directory / "001.sql").write_text(f"{done}INSERT INTO log VALUES (2);\n")
    second.run(MIGRATE, url=database.url, directory=directory)
    assert database.query("SELECT step FROM log ORDER BY step") == [(1,), (2,)]


def test_a_changed_half_of_a_file_is_refused_by_the_other_release(
    database: Database, tmp_path: Path, pair: Pair, start: Start
) -> None:
    directory = tmp_path / "sql"
    directory.mkdir()
    (directory / "001.sql").write_text("CREATE TABLE log (step INT);\nINSERT INTO missing VALUES (2);\n")
    first, second = map(start, pair)
    with pytest.raises(AgentError):
        first.run(MIGRATE, url=database.url, directory=directory)
    (directory / "001.sql").write_text("CREATE TABLE log (step BIGINT);\nINSERT INTO log VALUES (2);\n")
    with pytest.raises(AgentError, match=r"^HalfAppliedError"):
        second.run(MIGRATE, url=database.url, directory=directory)
