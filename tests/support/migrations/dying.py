"""Runs that die: SIGKILL at a statement, or at a step of the network, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pymysql
import sqlalchemy.dialects.mysql.pymysql  # noqa: F401  # once, not in every child

from sharedvol.errors import HalfAppliedError
from sharedvol.migrations.status import Step
from support.migrations.scenes import LOG, Scene, Violation, coordinator, logged, recorded, scene, wait_ended
from support.processes import Child
from support.servers import Server

Prepare = Callable[[], Callable[[Step], object]]
"""What a child calls before it runs, to be killed; it gives the observer."""


def note(file: str, step: int, note: str = "NULL") -> str:
    """A statement that leaves its own row."""
    return f"INSERT INTO {{own}}.log VALUES ('{file}', {step}, {note})"


PLAIN = {
    "001_tables.sql": f"""-- the first
{LOG};
{note("001", 1, "'100% :name ? %s ; -- `x` ''y'''")};
CREATE TABLE cities (id INT PRIMARY KEY, name VARCHAR(50));
CREATE TABLE people (id INT PRIMARY KEY, name VARCHAR(50), city INT);
ALTER TABLE people ADD CONSTRAINT lives FOREIGN KEY (city) REFERENCES cities (id);
{note("001", 2)};
""",
    "002_comment_only.sql": "-- nothing to do\n/* still nothing */\n# nor here\n",
    "003_empty.sql": "",
    "004_transactions.sql": f"""START TRANSACTION;
{note("004", 1)}; INSERT INTO cities VALUES (1, 'Ulm'), (2, 'Bonn');
SAVEPOINT here; {note("004", -1)}; ROLLBACK TO here;
UPDATE cities SET name = CONCAT(name, '!');
COMMIT;
UPDATE cities SET name = CONCAT(name, '?');
BEGIN; {note("004", -2)}; ROLLBACK;
{note("004", 2)};
""",
    "005_autocommit.sql": f"""SET autocommit = 0;
{note("005", 1)}; {note("005", 2)};
COMMIT;
{note("005", 3)};
CREATE TABLE amid (id INT);
{note("005", 4)}; ALTER TABLE amid ADD more INT;
{note("005", 5)}; COMMIT; SET autocommit = 1;
{note("005", 6)};
""",
    "006_routines.sql": f"""DELIMITER //
CREATE PROCEDURE fill(IN n INT)
BEGIN
  DECLARE i INT DEFAULT 0;
  WHILE i < n DO
    SET i = i + 1;
    INSERT INTO log VALUES ('006', i, 'called; twice?');
  END WHILE;
END//
CREATE TRIGGER named BEFORE INSERT ON people FOR EACH ROW
BEGIN
  SET NEW.name = UPPER(NEW.name);
END//
DELIMITER ;
CALL fill(3);
INSERT INTO people VALUES (1, 'ann', 1);
{note("006", 9)};
""",
    "007_settings.sql": f"""SET foreign_key_checks = 0, @city = 99;
SET SESSION sql_mode = 'ANSI_QUOTES';
INSERT INTO people VALUES (2, 'bob', @city);
SET NAMES utf8mb4;
CREATE TABLE "quoted" (id INT PRIMARY KEY, other INT, FOREIGN KEY (other) REFERENCES later (id));
{note("007", 1, "'schön 😀'")};
CREATE TABLE later (id INT PRIMARY KEY);
{note("007", 2)};
""",
    "008_elsewhere.sql": f"""USE {{other}};
CREATE TABLE there (id INT);
INSERT INTO there VALUES (1), (2);
ALTER TABLE there ADD UNIQUE (id);
{note("008", 1)};
""",
    "009_more.sql": f"""CREATE VIEW adults AS SELECT id, name FROM people;
CREATE OR REPLACE VIEW adults AS SELECT name FROM people WHERE id > 0;
DROP TABLE IF EXISTS gone;
RENAME TABLE amid TO renamed;
CREATE INDEX by_name ON people (name);
INSERT INTO renamed SELECT id, id FROM people;
SELECT COUNT(*) FROM people; SELECT 'a', 'b' UNION SELECT 'c', 'd';
SET @sum = 5; {note("009", 1, "@sum")};
DELETE FROM renamed WHERE id = 1;
DROP TRIGGER named;
{note("009", 2)};
""",
}
"""Files that a kill at any step must leave such that the next run ends as if nothing had happened."""

DOUBTFUL = {
    "001_log.sql": f"{LOG};\nCREATE TABLE t (id INT PRIMARY KEY, n INT);\nINSERT INTO t VALUES (1, 1), (2, 2);\n",
    "002_locked.sql": f"{note('002', 1)};\nLOCK TABLES {{own}}.log WRITE;\n{note('002', 3)};\nUNLOCK TABLES;\n",
    "003_counted.sql": f"{note('003', 1)};\nUPDATE t SET n = 7;\n{note('003', 3, 'ROW_COUNT()')};\n{note('003', 4)};\n",
    "004_short.sql": f"{note('004', 1)};\nCREATE PROCEDURE short() SELECT 1;\n{note('004', 3)};\n",
    "005_identity.sql": f"""CREATE TABLE keyed (id INT AUTO_INCREMENT PRIMARY KEY, n INT);
INSERT INTO keyed (n) VALUES (5);
{note("005", 3, "LAST_INSERT_ID()")};
{note("005", 4)};
""",
    "006_variable.sql": f"SET @n = (SELECT MAX(n) FROM t);\n{note('006', 2, '@n')};\n{note('006', 3)};\n",
}
"""Files with statements that share marks, or must be sent without them: some kills leave what cannot be known."""

UNKNOWN = {
    # LOCK TABLES keeps our own table out of reach until UNLOCK TABLES.
    "002_locked.sql": 2,
    # The mark between the two would be what ROW_COUNT() counts.
    "003_counted.sql": 2,
    # MySQL would store what is sent behind it as a part of the routine.
    "004_short.sql": 2,
    # Another session does not have the value.
    "005_identity.sql": 3,
    "006_variable.sql": 2,
}
"""Where resuming `DOUBTFUL` is refused: the statement that would be next."""


@dataclass
class Killer:
    """Kills runs in one scene, and checks what they leave.

    Args:
        scene: where.
        patch: changes the code in the children: to plant a bug.
    """

    scene: Scene
    patch: Callable[[], object] = lambda: None
    kills: int = 0

    def killed(self, prepare: Prepare, **options: Any) -> bool:
        """Run in a child that ``prepare`` has die, and look. False if it ended before it did."""

        def work(connection: Connection) -> None:
            self.patch()
            made = coordinator(self.scene.database, self.scene.directory, observer=prepare(), **options)
            try:
                made.run()
            except HalfAppliedError:
                ((half),) = made.current.half_applied
                connection.send((half.name, half.next))

        child = Child(work)
        status = child.wait()
        child.kill()  # reaped already: tells the ``with`` that its status is no failure
        with child:
            if child.connection.poll():
                with contextlib.suppress(EOFError):
                    raise Refused(child.connection.recv())
        if status not in (0, -signal.SIGKILL):
            raise Violation(f"the run failed by itself, with status {status}")
        if status == 0:
            return False
        self.kills += 1
        self.look()
        return True

    def look(self) -> None:
        """What must be true at any moment, as soon as the server has ended the session of the dead."""
        wait_ended(self.scene.database)
        log = logged(self.scene.database)
        twice = [entry for entry, times in log.items() if times > 1]
        if twice:
            raise Violation(f"run twice: {twice}")
        for name in recorded(self.scene.database):
            last = max((step for file, step in expected_log(self.scene) if file == name[:3]), default=None)
            if last is not None and (name[:3], last) not in log:
                raise Violation(f"recorded, and not done: {name}")

    def finish(self, picture: dict[str, Any]) -> None:
        """Let a run end. Everything is as if no process had been killed, or the run is refused.

        Raises:
            Refused: where it is.
            Violation: the outcome is another one.
        """
        if self.killed(lambda: lambda step: None):
            raise AssertionError("killed by something else")
        self.look()
        found = self.scene.picture()
        different = [key for key in sorted({*found, *picture}) if found.get(key) != picture.get(key)]
        if different:
            told = [f"{key}: {found.get(key)}\ninstead of {picture.get(key)}" for key in different]
            raise Violation("\n".join(["another outcome:", *told]))


class Refused(Exception):
    """A run that cannot resume: the file, and the statement that would be next."""

    @property
    def where(self) -> tuple[str, int]:
        name, number = self.args[0]
        return name, number


def expected_log(scene: Scene) -> set[tuple[str, int]]:
    """What the log will hold."""
    texts = {file.name[:3]: file.read_text() for file in scene.directory.iterdir()}
    places = [(number, step) for number in texts for step in range(1, 10)]
    return {(number, step) for number, step in places if f"VALUES ('{number}', {step}," in texts[number]}


def die_at_step(number: int, behind: Callable[[Step], bool] | None = None) -> Prepare:
    """SIGKILL at that step of the network, the first being 0.

    A step ends when half of a packet is sent, when all of it is sent, and when one of its results has been read. What
    is "before a packet" to the client is "after the last result" to the server.

    Args:
        number: which step.
        behind: steps count once the observer got this; from the start if it is None.
    """

    def prepare() -> Callable[[Step], object]:
        left, counting = number, behind is None
        connection = pymysql.connections.Connection
        send, read = connection._write_bytes, connection._read_query_result  # type: ignore[attr-defined]

        def due() -> bool:
            nonlocal left
            left -= counting
            return left < 0

        def write(self: Any, data: bytes) -> None:
            if due():
                self._sock.sendall(data[: len(data) // 2])
                die()
            send(self, data)
            if due():
                die()

        def result(self: Any, *args: Any, **options: Any) -> Any:
            found = read(self, *args, **options)
            if due():
                die()
            return found

        def observe(step: Step) -> None:
            nonlocal counting
            counting = counting or (behind is not None and behind(step))

        connection._write_bytes, connection._read_query_result = write, result  # type: ignore[attr-defined]
        return observe

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def uninterrupted(server: Server, directory: Path, files: dict[str, str]) -> dict[str, Any]:
    """The picture after a run that nothing disturbs."""
    with scene(server, directory, files) as calm:
        killer = Killer(calm)
        assert not killer.killed(lambda: lambda step: None)
        return calm.picture()


def one_history(killer: Killer, picture: dict[str, Any], seed: int) -> None:
    """Kill run after run, each a few steps behind its first statement, until one ends."""
    chosen = random.Random(seed)
    while killer.killed(die_at_step(int(chosen.expovariate(1 / 12)), lambda step: step.kind == "statement")):
        assert killer.kills < 2000, "no progress"
    killer.finish(picture)
