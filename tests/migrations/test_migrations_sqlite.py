"""SQLite as the target of development: the same ledger, the same status, the same promises."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.migrations.scenes import write
from support.processes import LIMIT, Child

from sharedvol import FileLock
from sharedvol.database.connection import Database
from sharedvol.errors import HalfAppliedError, LedgerError, LockTimeout, ManifestError
from sharedvol.migrations import MigrationCoordinator, MigrationFailed, MigrationStatus

LOG = "CREATE TABLE log (file TEXT, step INT)"


def note(step: int) -> str:
    return f"INSERT INTO log VALUES ('f', {step});\n"


FILES = {
    "001_log.sql": f"-- first\n{LOG};\n{note(1)}CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT);\n",
    "002_empty.sql": "-- nothing\n",
    "003_own.sql": f"BEGIN;\n{note(2)}CREATE TABLE u (id INT);\n{note(3)}COMMIT;\n{note(4)}",
    "004_trigger.sql": f"CREATE TRIGGER g AFTER INSERT ON t BEGIN\n {note(5)}END;\nINSERT INTO t VALUES (1, '%:x?');\n",
    "005_undone.sql": f"BEGIN;\n{note(-1)}ROLLBACK;\nPRAGMA user_version = 7;\n{note(6)}",
    "006_more.sql": f"ALTER TABLE u ADD COLUMN n INT;\n{note(7)}DROP TABLE u;\n{note(8)}",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def coordinator(place: Path, directory: Path, **options: Any) -> MigrationCoordinator:
    return MigrationCoordinator(f"sqlite:///{place}", directory, **{"lock_timeout": LIMIT, **options})


def query(place: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(place, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def steps(place: Path) -> list[int]:
    return [step for (step,) in query(place, "SELECT step FROM log ORDER BY step")]


def picture(place: Path) -> list[str]:
    """All of the database, but for what differs from run to run."""
    with closing(sqlite3.connect(place)) as connection:
        connection.execute("UPDATE schema_version SET applied_at = NULL")
        connection.execute("UPDATE sharedvol_migration SET updated_at = NULL, replica = NULL")
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchall())]


def test_status_and_ledger_are_those_of_a_server(place: Path, tmp_path: Path) -> None:
    made = coordinator(place, write(tmp_path / "sql", FILES))
    assert made.plan().pending == list(FILES) and made.status().state == "pending"
    status = made.run()
    assert status.ready and status.newly_applied == len(FILES) and status.lock_acquired and not status.fast_path
    assert query(place, "SELECT filename, success FROM schema_version ORDER BY 1") == [(name, 1) for name in FILES]
    assert steps(place) == [1, 2, 3, 4, 5, 6, 7, 8]
    again = coordinator(place, tmp_path / "sql")
    assert again.run().fast_path and again.status().as_dict().keys() == status.as_dict().keys()


def test_each_file_is_applied_by_exactly_one_of_many(place: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "sql", FILES)

    def work(connection: Connection) -> None:
        connection.recv()
        connection.send(coordinator(place, directory).run())

    with ExitStack() as stack:
        children = [stack.enter_context(Child(work)) for _ in range(8)]
        for child in children:
            child.send("go")
        statuses: list[MigrationStatus] = [child.receive() for child in children]
    assert all(status.ready for status in statuses)
    assert Counter(status.newly_applied for status in statuses) == {len(FILES): 1, 0: 7}
    assert steps(place) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_lock_beside_the_file_is_waited_for(place: Path, tmp_path: Path) -> None:
    with FileLock(f"{place}.migration-lock"), pytest.raises(LockTimeout):
        coordinator(place, write(tmp_path / "sql", FILES), lock_timeout=0).run()
    assert not query(place, "SELECT name FROM sqlite_master")


def test_failing_statement_leaves_nothing_of_it_and_is_gone_on_with(place: Path, tmp_path: Path) -> None:
    text = f"{note(1)}INSERT INTO log SELECT 'f', step FROM (VALUES (2), (abs(-9223372036854775808)));\n"
    made = coordinator(place, write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": text, "2.sql": note(9)}))
    with pytest.raises(MigrationFailed, match=r"1\.sql: statement 2 of 2 \(line 2, INSERT INTO log\)"):
        made.run()
    assert made.current.filenames == ["0.sql"] and made.current.pending == ["1.sql", "2.sql"]
    ((half,),) = (made.current.half_applied,)
    assert (half.done, half.next, half.obstacle) == (1, 2, None) and steps(place) == [1]
    write(tmp_path / "sql", {"0.sql": f"{LOG};\n", "1.sql": note(1) + note(2), "2.sql": note(9)})
    assert coordinator(place, tmp_path / "sql").run().filenames == ["1.sql", "2.sql"]
    assert steps(place) == [1, 2, 9]


def test_failure_within_a_transaction_goes_on_at_its_start(place: Path, tmp_path: Path) -> None:
    files = {"0.sql": f"{LOG};\n", "1.sql": f"{note(1)}BEGIN;\n{note(2)}SELECT nonsense;\nCOMMIT;\n"}
    made = coordinator(place, write(tmp_path / "sql", files))
    with pytest.raises(MigrationFailed):
        made.run()
    assert steps(place) == [1] and made.current.half_applied[0].next == 2
    write(tmp_path / "sql", {**files, "1.sql": f"{note(1)}BEGIN;\n{note(2)}COMMIT;\n"})
    assert coordinator(place, tmp_path / "sql").run().ready and steps(place) == [1, 2]


def test_change_of_what_has_been_run_is_refused(place: Path, tmp_path: Path) -> None:
    files = {"0.sql": f"{LOG};\n", "1.sql": f"{note(1)}SELECT nonsense;\n"}
    with pytest.raises(MigrationFailed):
        coordinator(place, write(tmp_path / "sql", files)).run()
    write(tmp_path / "sql", {**files, "1.sql": f"{note(2)}{note(3)}"})
    with pytest.raises(HalfAppliedError, match="are others now"):
        coordinator(place, tmp_path / "sql").run()
    assert steps(place) == [1]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE schema_version (filename TEXT PRIMARY KEY)",
        "CREATE VIEW schema_version AS SELECT filename, success FROM gone",
        "CREATE VIEW sharedvol_migration AS SELECT * FROM gone",
    ],
)
def test_ledger_that_cannot_be_read_is_never_taken_for_an_empty_one(place: Path, tmp_path: Path, sql: str) -> None:
    query(place, sql)
    made = coordinator(place, write(tmp_path / "sql", FILES))
    for look in (made.run, made.plan, made.status):
        with pytest.raises(LedgerError, match="what has been applied is not known"):
            look()
    assert len(query(place, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")) == 1


def test_last_file_that_cannot_be_taken_apart_stops_before_the_first(place: Path, tmp_path: Path) -> None:
    made = coordinator(place, write(tmp_path / "sql", {**FILES, "9.sql": "INSERT INTO log VALUES ('never closed"}))
    with pytest.raises(ManifestError, match=r"9\.sql"):
        made.run()
    assert not query(place, "SELECT name FROM sqlite_master")


# Kills: before and behind every statement that is sent to SQLite, ours included.


def die_at(number: int | None) -> None:
    """SIGKILL there, the first place being 0."""
    left = number

    def count() -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **values: Any) -> Any:
            count()
            found = call(*args, **values)
            count()
            return found

        return counting

    for name in ("query", "change", "run"):
        setattr(Database, name, counted(getattr(Database, name)))


def killed(place: Path, directory: Path, number: int | None) -> bool:
    def work(_: Connection) -> None:
        die_at(number)
        coordinator(place, directory).run()

    child = Child(work)
    status = child.wait()
    child.kill()  # reaped already: tells the ``with`` that its status is no failure
    with child:
        assert status in (0, -signal.SIGKILL), f"the run failed by itself at {place}"
    return status != 0


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Where a commit costs nothing: SIGKILL does not test what a disk remembers."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as path:
        yield Path(path)


@pytest.mark.parametrize("phase", range(3))
def test_kill_anywhere_leaves_nothing_undone_or_twice(memory: Path, tmp_path: Path, phase: int) -> None:
    directory = write(tmp_path / "sql", FILES)
    assert not killed(memory / "calm.db", directory, None)
    expected = picture(memory / "calm.db")
    number, kills, refused = phase, 0, 0
    while killed(memory / f"{number}.db", directory, number):
        place = memory / f"{number}.db"
        try:
            coordinator(place, directory).run()
        except HalfAppliedError as error:
            assert "PRAGMA" in str(error), (number, error)  # it cannot be in a transaction with its marks
            refused += 1
        else:
            assert picture(place) == expected, number
        number += 3
        kills += 1
    assert kills > 50 and refused < 4


@pytest.mark.parametrize("seed", range(4))
def test_history_of_kills_ends_as_if_nothing_had_happened(memory: Path, tmp_path: Path, seed: int) -> None:
    files = {name: text.replace("PRAGMA user_version = 7;\n", "") for name, text in FILES.items()}
    directory = write(tmp_path / "sql", files)
    assert not killed(memory / "calm.db", directory, None)
    chosen, kills = random.Random(seed), 0
    while killed(memory / "app.db", directory, chosen.randrange(20, 70)):
        kills += 1
        assert kills < 500, "no progress"
    assert kills > 3 and picture(memory / "app.db") == picture(memory / "calm.db")
