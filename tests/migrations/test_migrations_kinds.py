"""Alembic's revisions and Python functions: on the lock's own connection, once, and told truthfully."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.processes import LIMIT, Child
from support.servers import Database

from sharedvol import HalfAppliedError, ManifestError, MigrationCoordinator, MigrationError, MigrationFailed
from sharedvol.migrations import AlembicMigrations, PythonMigrations

ENV = """
from alembic import context
connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
"""
OWN_CONNECTION = """
from alembic import context
from sqlalchemy import create_engine
with create_engine({url!r}).connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
from alembic import op
revision, down_revision, branch_labels, depends_on = {name!r}, {before!r}, None, None
def upgrade():
    op.execute("CREATE TABLE {name} (connection INT, holder INT)")
    op.execute("INSERT INTO {name} {insert}")
    {more}
def downgrade():
    pass
"""
MYSQL = "VALUES (CONNECTION_ID(), IS_USED_LOCK('alembic_lock'))"


def alembic(place: Path, *more: str, env: str = ENV, insert: str = MYSQL) -> Path:
    """An Alembic environment with a revision ``r1``, ``r2``, ... for each of ``more``, its last line."""
    (place / "scripts" / "versions").mkdir(parents=True, exist_ok=True)
    (place / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/scripts\n[loggers]\nkeys = none\n")
    (place / "scripts" / "env.py").write_text(env)
    for number, line in enumerate(more, 1):
        text = REVISION.format(
            name=f"r{number}", before=f"r{number - 1}" if number > 1 else None, insert=insert, more=line or "pass"
        )
        (place / "scripts" / "versions" / f"r{number}.py").write_text(text)
    return place / "alembic.ini"


def run_alembic(database: Database, config: Path, **options: Any) -> MigrationCoordinator:
    return MigrationCoordinator(
        database.url, AlembicMigrations(config), lock_name="alembic_lock", lock_timeout=LIMIT, **options
    )


def test_alembic_upgrades_on_the_connection_that_holds_the_lock(database: Database, tmp_path: Path) -> None:
    coordinator = run_alembic(database, alembic(tmp_path, "", ""))
    assert coordinator.plan().pending == ["r1", "r2"]
    assert database.query("SHOW TABLES") == []  # a look makes no table
    status = coordinator.run()
    assert (status.filenames, status.state, status.pending_migrations) == (["r1", "r2"], "up_to_date", 0)
    for table in ("r1", "r2"):
        ((connection, holder),) = database.query(f"SELECT connection, holder FROM {table}")
        assert connection == holder
    assert database.query("SELECT version_num FROM alembic_version") == [("r2",)]
    again = run_alembic(database, tmp_path / "alembic.ini", expected_latest="r2").run()
    assert (again.fast_path, again.newly_applied) == (True, 0)


def test_alembic_is_upgraded_by_one_of_many(database: Database, tmp_path: Path) -> None:
    config = alembic(tmp_path, "", "", "")

    def start(connection: Any) -> None:
        connection.recv()
        connection.send(run_alembic(database, config).run().newly_applied)

    children = [Child(start) for _ in range(4)]
    for child in children:
        child.send("go")
    applied = [child.receive() for child in children]
    for child in children:
        with child:
            pass
    assert sum(applied) == 3
    assert [database.query(f"SELECT COUNT(*) FROM r{number}") for number in (1, 2, 3)] == [[(1,)]] * 3


def test_alembic_tells_what_was_applied_before_a_failure(database: Database, tmp_path: Path) -> None:
    coordinator = run_alembic(database, alembic(tmp_path, "", "raise RuntimeError('no more')", ""))
    with pytest.raises(MigrationFailed, match="r2: RuntimeError: no more") as failed:
        coordinator.run()
    assert failed.value.status.filenames == ["r1"]
    assert failed.value.status.pending == ["r2", "r3"]
    assert database.query("SELECT version_num FROM alembic_version") == [("r1",)]


def test_an_environment_that_opens_its_own_connection_is_refused_before_anything_runs(
    database: Database, tmp_path: Path
) -> None:
    config = alembic(tmp_path, "", env=OWN_CONNECTION.format(url=database.url))
    with pytest.raises(MigrationError, match=r"opens a connection of its own.*config.attributes\['connection'\]"):
        run_alembic(database, config).run()
    assert database.query("SHOW TABLES") == []


def test_a_revision_that_the_image_does_not_know_is_ahead(database: Database, tmp_path: Path) -> None:
    config = alembic(tmp_path, "")
    run_alembic(database, config).run()
    database.query("UPDATE alembic_version SET version_num = 'newer'")
    status = run_alembic(database, config).run()
    assert (status.state, status.ahead, status.pending) == ("ahead", ["newer"], [])


def test_alembic_without_its_files_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        MigrationCoordinator("sqlite://", AlembicMigrations(tmp_path / "alembic.ini")).run()
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = nowhere\n")
    with pytest.raises(ManifestError, match="nowhere"):
        MigrationCoordinator("sqlite://", AlembicMigrations(tmp_path / "alembic.ini")).run()


def test_alembic_on_sqlite_leaves_the_logging_of_the_application(tmp_path: Path) -> None:
    env = "from logging.config import fileConfig\nfrom alembic import context\n"
    env += "if context.config.config_file_name is not None:\n    fileConfig(context.config.config_file_name)\n" + ENV
    config = alembic(tmp_path, "", env=env, insert="VALUES (1, 1)")
    handlers = list(logging.getLogger().handlers)
    status = MigrationCoordinator(f"sqlite:///{tmp_path}/dev.db", AlembicMigrations(config)).run()
    assert status.filenames == ["r1"]
    assert logging.getLogger().handlers == handlers


def test_python_functions_run_once_on_the_lock_s_connection_and_are_recorded(database: Database) -> None:
    seen = []

    def first(connection: Any) -> None:
        seen.append(connection.exec_driver_sql("SELECT CONNECTION_ID(), IS_USED_LOCK('python_lock')").one())
        connection.exec_driver_sql("CREATE TABLE a (id INT)")

    def second(connection: Any) -> None:
        connection.exec_driver_sql("INSERT INTO a VALUES (1)")

    migrations = PythonMigrations({"first": first, "second": second})
    status = MigrationCoordinator(database.url, migrations, lock_name="python_lock").run()
    assert status.filenames == ["first", "second"]
    assert seen[0][0] == seen[0][1]
    assert database.query("SELECT id FROM a") == [(1,)]
    assert sorted(database.query("SELECT filename, success FROM schema_version")) == [("first", 1), ("second", 1)]
    assert MigrationCoordinator(database.url, migrations).run().fast_path
    assert len(seen) == 1


def test_a_python_function_that_failed_is_not_called_again_unless_it_may_be(database: Database) -> None:
    calls = []

    def fails(connection: Any) -> None:
        calls.append(connection)
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS half (id INT)")
        connection.exec_driver_sql("INSERT INTO half VALUES (1)")
        if len(calls) < 2:
            raise RuntimeError("half-way")

    with pytest.raises(MigrationFailed, match="half-way") as failed:
        MigrationCoordinator(database.url, PythonMigrations({"fails": fails})).run()
    assert failed.value.status.pending == ["fails"]
    assert database.query("SELECT * FROM half") == []  # rows are undone, the table is not
    with pytest.raises(HalfAppliedError, match="fails"):
        MigrationCoordinator(database.url, PythonMigrations({"fails": fails})).run()
    assert len(calls) == 1
    MigrationCoordinator(database.url, PythonMigrations({"fails": fails}, repeatable=True)).run()
    assert database.query("SELECT * FROM half") == [(1,)]


def test_a_python_function_that_a_person_says_is_done_is_recorded_and_not_called(database: Database) -> None:
    calls = []

    def fails(connection: Any) -> None:
        calls.append(connection)
        raise RuntimeError("half-way")

    migrations = PythonMigrations({"fails": fails})
    with pytest.raises(HalfAppliedError, match="has not begun here"):
        MigrationCoordinator(database.url, migrations, resume_at={"fails": 2}).run()
    with pytest.raises(MigrationFailed):
        MigrationCoordinator(database.url, migrations).run()
    with pytest.raises(HalfAppliedError, match="has 1 statements"):
        MigrationCoordinator(database.url, migrations, resume_at={"fails": 3}).run()
    assert MigrationCoordinator(database.url, migrations, resume_at={"fails": 2}).run().filenames == ["fails"]
    assert len(calls) == 1
    assert database.query("SELECT filename, success FROM schema_version") == [("fails", 1)]


def test_files_and_functions_share_a_schema(database: Database, tmp_path: Path) -> None:
    MigrationCoordinator(database.url, PythonMigrations({"function": lambda connection: None})).run()
    (tmp_path / "1.sql").write_text("CREATE TABLE a (id INT);\n")
    status = MigrationCoordinator(database.url, tmp_path, ahead="refuse").run()
    assert (status.filenames, status.ahead, status.state) == (["1.sql"], [], "up_to_date")
