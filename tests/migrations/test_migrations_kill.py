"""SIGKILL of the migrating process, anywhere: the next one ends as if nothing had been, or says that it cannot know."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.migrations.dying import (
    DOUBTFUL,
    PLAIN,
    UNKNOWN,
    Killer,
    Refused,
    die,
    die_at_step,
    note,
    one_history,
    uninterrupted,
)
from support.migrations.scenes import (
    LOG,
    Violation,
    coordinating,
    coordinator,
    is_statement,
    is_waiting,
    recorded,
    scene,
    sessions,
    steps,
    write,
)
from support.processes import wait_until
from support.servers import Database, Server

from sharedvol.migrations.ledger import Ledger
from sharedvol.migrations.sources import directory as source
from sharedvol.migrations.sources.directory import Directory
from sharedvol.migrations.status import Step

EVERY = os.environ.get("SHAREDVOL_TEST_KILLS") == "all"
"""Kill at every step of the network by itself, which takes twenty minutes; else at a sample of them."""

STRIDE = 1 if EVERY else 40
SENT = 1
"""The step of the network at which the first packet has been sent whole."""

HISTORIES = range(50 if EVERY else 4)


def test_outcome_is_that_of_the_stock_client(server: Server, tmp_path: Path) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    with scene(server, tmp_path / "sql", PLAIN) as alive:
        for file in sorted(alive.directory.iterdir()):
            assert not server.client(file.read_bytes(), alive.database.name).stderr
        found = alive.picture()
    ours = ("OWN.schema_version", "OWN.sharedvol_migration")
    assert found == {key: value for key, value in picture.items() if key not in ours}


@pytest.mark.parametrize("seed", HISTORIES)
def test_history_of_kills_ends_as_if_nothing_had_happened(server: Server, tmp_path: Path, seed: int) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    with scene(server, tmp_path / "sql", PLAIN) as alive:
        killer = Killer(alive)
        one_history(killer, picture, seed)
    assert killer.kills > 15


@pytest.mark.timeout(120 if not EVERY else 1800)
@pytest.mark.parametrize("phase", range(4))
def test_kill_at_any_step_of_the_network_leaves_nothing_undone_or_twice(
    server: Server, tmp_path: Path, phase: int
) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    number, kills = phase * STRIDE, 0
    while True:
        with scene(server, tmp_path / "sql", PLAIN) as alive:
            killer = Killer(alive)
            if not killer.killed(die_at_step(number)):
                break
            killer.finish(picture)
        kills += 1
        number += 4 * STRIDE
    assert kills > 3


def test_kill_before_any_statement_leaves_nothing_undone_or_twice(server: Server, tmp_path: Path) -> None:
    seen: list[Step] = []
    with scene(server, tmp_path / "sql", PLAIN) as calm:
        coordinator(calm.database, calm.directory, observer=seen.append).run()
        picture = calm.picture()
    assert len(seen) > 70
    with scene(server, tmp_path / "sql", PLAIN) as alive:
        killer = Killer(alive)
        for place in seen:
            assert killer.killed(lambda place=place: lambda step: is_same(step, place) and die()), place
        killer.finish(picture)


def is_same(step: Step, other: Step) -> bool:
    return (step.kind, step.name, step.statement) == (other.kind, other.name, other.statement)


@pytest.mark.parametrize("name", UNKNOWN)
def test_kill_that_leaves_the_outcome_unknown_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    with scene(server, tmp_path / "sql", DOUBTFUL) as alive:
        killer = Killer(alive)
        needs_the_session = name in ("005_identity.sql", "006_variable.sql")
        assert killer.killed(die_at_step(SENT - needs_the_session, is_statement(name, UNKNOWN[name])))
        before = alive.picture()
        for _ in range(2):  # by every later run, too, and it changes nothing
            with pytest.raises(Refused) as refusal:
                killer.killed(lambda: lambda step: None)
            assert refusal.value.where == (name, UNKNOWN[name])
        assert alive.picture() == before
        assert name not in recorded(alive.database)


@pytest.mark.parametrize("name", ["002_locked.sql", "004_short.sql"])
def test_kill_while_a_packet_is_sent_is_not_refused(server: Server, tmp_path: Path, name: str) -> None:
    picture = uninterrupted(server, tmp_path / "sql", DOUBTFUL)
    with scene(server, tmp_path / "sql", DOUBTFUL) as alive:
        killer = Killer(alive)
        assert killer.killed(die_at_step(SENT - 1, is_statement(name, UNKNOWN[name])))
        killer.finish(picture)


def test_call_whose_results_nobody_reads_is_done_or_refused(server: Server, tmp_path: Path) -> None:
    # A server that cannot send the results of a CALL ends it there, and the packet with it.
    files = {
        "001.sql": f"{LOG};",
        "002.sql": f"""DELIMITER //
CREATE PROCEDURE told()
BEGIN
  {note("002", 1)}; SELECT REPEAT('x', 9000000); {note("002", 2)}; SELECT REPEAT('x', 9000000); {note("002", 3)};
END//
CALL told()//
{note("002", 4)}//
""",
    }
    picture = uninterrupted(server, tmp_path / "sql", files)
    with scene(server, tmp_path / "sql", files) as alive:
        killer = Killer(alive)
        assert killer.killed(die_at_step(SENT, is_statement("002.sql", 2)))
        with contextlib.suppress(Refused):
            killer.finish(picture)
            return
        assert "002.sql" not in recorded(alive.database) and steps(alive.database)[-1:] != [4]


@pytest.mark.skipif(not EVERY, reason="takes minutes: SHAREDVOL_TEST_KILLS=all")
@pytest.mark.timeout(1800)
def test_nothing_but_the_unknown_is_refused(server: Server, tmp_path: Path) -> None:
    picture = uninterrupted(server, tmp_path / "sql", DOUBTFUL)
    refused: set[tuple[str, int]] = set()
    number = 0
    while True:
        with scene(server, tmp_path / "sql", DOUBTFUL) as alive:
            killer = Killer(alive)
            try:
                if not killer.killed(die_at_step(number)):
                    break
                killer.finish(picture)
            except Refused as refusal:
                refused.add(refusal.where)
        number += 1
    assert refused == set(UNKNOWN.items())


# The harness must see what it is there for.


def record_first() -> None:
    apply_one: Any = Directory._apply_one
    record = Ledger.record
    Ledger.record = lambda self, name, row, records: None  # type: ignore[assignment, method-assign]

    def wrong(self: Any, run: Any, statements: Any, started: Any) -> None:
        record(run.ledger, started.name, None, run.records)
        apply_one(self, run, statements, started)

    Directory._apply_one = wrong  # type: ignore[method-assign]


def rerun_the_whole_file() -> None:
    source.begin_at = lambda one, session: 0


def leave_out_the_next() -> None:
    source.begin_at = lambda one, session: one.next


def mark_nothing() -> None:
    Ledger.mark_done = lambda self, row, number: "DO 0"  # type: ignore[method-assign]


@pytest.mark.parametrize("bug", [record_first, rerun_the_whole_file, leave_out_the_next, mark_nothing])
def test_planted_bug_is_found(server: Server, tmp_path: Path, bug: Callable[[], None]) -> None:
    picture = uninterrupted(server, tmp_path / "sql", PLAIN)
    with scene(server, tmp_path / "sql", PLAIN) as alive, pytest.raises((Violation, Refused)):
        one_history(Killer(alive, bug), picture, seed=1)


# A statement that continues although its client is dead.

LONG = {
    "001.sql": f"{LOG}; CREATE TABLE big (id INT PRIMARY KEY); INSERT INTO big VALUES (1);",
    "002.sql": """INSERT INTO log VALUES ('002', 1, NULL);
ALTER TABLE big ADD n INT;
INSERT INTO log VALUES ('002', 3, NULL);
""",
    "003.sql": "INSERT INTO log VALUES ('003', 4, NULL);",
}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_alter_goes_on_when_its_client_is_gone_and_the_next_waits_for_it(
    database: Database, tmp_path: Path, how: signal.Signals
) -> None:
    directory = write(tmp_path / "sql", LONG)
    with closing(database.connect(autocommit=False)) as reader, reader.cursor() as cursor:
        with coordinating(database, directory, at=is_statement("002.sql", 2)) as (first, _):
            cursor.execute("SELECT * FROM big")  # as a long query would: ALTER waits for the end of its transaction
            first.send("continue")
            wait_until(lambda: is_altering(database), "the ALTER to wait")
            os.kill(first.pid, how)
            assert first.wait() != 0
            first.kill()  # reaped already: tells the ``with`` that its status is no failure
        with coordinating(database, directory, at=is_waiting) as (second, step):
            assert is_altering(database)  # though no client is left to read its answer
            ((session, _),) = [one for one in sessions(database) if one[1] == METADATA]
            assert f"connection {session} " in step.detail
            assert steps(database) == [1]
            second.send("continue")
            cursor.execute("COMMIT")
            status = second.receive()
    assert status.ready and status.filenames == ["002.sql", "003.sql"] and status.lock_acquired
    assert steps(database) == [1, 3, 4]
    assert [name for name, *_ in database.query("SHOW COLUMNS FROM big")] == ["id", "n"]


METADATA = "Waiting for table metadata lock"


def is_altering(database: Database) -> bool:
    return METADATA in [state for _, state in sessions(database)]
