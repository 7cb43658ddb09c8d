"""What may be followed in one packet is taken by the servers as if it stood alone."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT
from support.servers import Database, Server

from sharedvol.migrations.sql import statements as kinds

SETUP = """CREATE TABLE t (a INT AUTO_INCREMENT PRIMARY KEY, b INT)
INSERT INTO t VALUES (1, 2), (2, 3)
CREATE TABLE u (a INT, event INT)
CREATE PROCEDURE p(x INT) INSERT INTO t (b) VALUES (x)
CREATE VIEW v AS SELECT 1 AS a""".split("\n")

STATEMENTS = [
    "INSERT INTO t (b) VALUES (7)",
    "INSERT INTO t (b) SELECT b FROM t -- x;\n WHERE a > 1",
    "INSERT INTO t (b) VALUES (8) /*!50001 ON DUPLICATE KEY UPDATE b = 9 */",
    "INSERT INTO t (b) VALUES (8) /*!99999 ON DUPLICATE KEY UPDATE b = 9 */",
    "INSERT INTO t (b) VALUES (8) /*M!100000 ON DUPLICATE KEY UPDATE b = 9 */",
    "UPDATE /*+ NO_MERGE(t) */ t SET b = b + 1",
    "DELETE FROM t WHERE a = (SELECT 1)",
    "REPLACE INTO t VALUES (1, 5)",
    "WITH x AS (SELECT 1 AS a) SELECT a FROM x",
    "SELECT CASE WHEN 1 THEN 2 END",
    "SELECT 1 AS end",
    "SELECT a INTO @a FROM t LIMIT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "VALUES (1), (2)",
    "CALL p(3)",
    "DO 1",
    "SET @a = 1, sql_mode = ''",
    "SET NAMES utf8mb4",
    "SET STATEMENT max_statement_time = 9 FOR INSERT INTO t (b) VALUES (9)",
    "PREPARE s FROM 'INSERT INTO t (b) VALUES (4)'",
    "EXECUTE IMMEDIATE 'INSERT INTO t (b) VALUES (4)'",
    "START TRANSACTION",
    "BEGIN",
    "COMMIT",
    "BEGIN NOT ATOMIC INSERT INTO t (b) VALUES (5); INSERT INTO t (b) VALUES (6); END",
    "IF 1 THEN INSERT INTO t (b) VALUES (5); END IF",
    "LOCK TABLES t WRITE",
    "UNLOCK TABLES",
    "ALTER TABLE t ADD c INT COMMENT 'a;b' DEFAULT 5",
    "ALTER TABLE u DROP event",
    "ANALYZE TABLE t",
    "CREATE TABLE x (a INT /*!50001 COMMENT 'x' */) /*!99999 NONSENSE */",
    "CREATE TABLE x AS SELECT * FROM t",
    "CREATE TABLE x (event INT, CHECK (event > 1))",
    "CREATE TABLE x LIKE t",
    "CREATE OR REPLACE VIEW v AS SELECT CASE WHEN 1 THEN 2 END AS a",
    "ALTER VIEW v AS SELECT 1 AS end",
    "CREATE INDEX i ON t (b)",
    "RENAME TABLE t TO x",
    "DROP TABLE t",
    "TRUNCATE TABLE t",
    "CREATE PROCEDURE q() SELECT 1",
    "CREATE PROCEDURE q() BEGIN END",
    "CREATE PROCEDURE q() BEGIN SELECT 1; SELECT 'END'; END",
    "CREATE PROCEDURE q() x: BEGIN SELECT 1; END x",
    "CREATE PROCEDURE q() IF 1 THEN SELECT 1; END IF",
    "CREATE PROCEDURE q() CASE 1 WHEN 1 THEN SELECT 1; END CASE",
    "CREATE PROCEDURE q() x: LOOP LEAVE x; END LOOP x",
    "CREATE PROCEDURE q() SELECT CASE WHEN 1 THEN 2 END",
    "CREATE PROCEDURE q() SELECT 1 AS begin, 2 AS end",
    "CREATE PROCEDURE q() COMMENT 'BEGIN; ' SELECT 1 AS end",
    "CREATE FUNCTION f() RETURNS INT DETERMINISTIC RETURN CASE 1 WHEN 1 THEN 2 END",
    "CREATE FUNCTION f() RETURNS INT DETERMINISTIC BEGIN RETURN CASE 1 WHEN 1 THEN 2 END; END",
    "CREATE TRIGGER c BEFORE INSERT ON t FOR EACH ROW SET NEW.b = CASE 1 WHEN 1 THEN 2 END",
    "CREATE TRIGGER c BEFORE INSERT ON t FOR EACH ROW BEGIN SET NEW.b = 1; END",
    "CREATE EVENT e ON SCHEDULE EVERY 1 YEAR STARTS '2090-01-01' DO SELECT CASE WHEN 1 THEN 2 END",
    "CREATE EVENT e ON SCHEDULE EVERY 1 YEAR STARTS '2090-01-01' DO BEGIN SELECT 1; SELECT 2; END",
    "ALTER PROCEDURE p COMMENT 'END'",
]


def outcome(server: Server, text: str, behind: str) -> Any:
    """The error, or all that is in a database of its own, once ``text`` has run with ``behind`` behind it."""
    name = server.create_database()
    database = Database(server, name)
    try:
        for statement in SETUP:
            database.query(statement)
        with closing(database.connect(client_flag=CLIENT.MULTI_STATEMENTS)) as connection:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(text + behind)
                    while cursor.nextset():
                        pass
            except pymysql.MySQLError as error:
                return error.args[0]
        return contents(database)
    finally:
        database.drop()


def contents(database: Database) -> list[str]:
    """What SHOW CREATE says of all that is in it, and the rows."""
    found = []
    for kind, table, condition in [
        ("TABLE", "TABLES", ""),
        ("PROCEDURE", "ROUTINES", "AND ROUTINE_TYPE = 'PROCEDURE'"),
        ("FUNCTION", "ROUTINES", "AND ROUTINE_TYPE = 'FUNCTION'"),
        ("TRIGGER", "TRIGGERS", ""),
        ("EVENT", "EVENTS", ""),
    ]:
        noun = table.removesuffix("S")
        of_this = f"{noun}_SCHEMA = '{database.name}' {condition}"
        for (name,) in database.query(f"SELECT {noun}_NAME FROM information_schema.{table} WHERE {of_this} ORDER BY 1"):
            shown = database.query(f"SHOW CREATE {kind} {name}")[0]
            found += [part.replace(database.name, "DATABASE") for part in shown if isinstance(part, str)]
            if kind == "TABLE":
                found.append(str(database.query(f"SELECT * FROM {name}")))
    return found


@pytest.mark.parametrize("text", list(filter(kinds.can_be_followed, STATEMENTS)))
def test_statement_that_can_be_followed_stays_as_it_is(server: Server, text: str) -> None:
    assert outcome(server, text, "\n;DO 0") == outcome(server, text, "")


def test_statement_of_one_body_would_not(server: Server) -> None:
    text = "CREATE PROCEDURE q() SELECT CASE WHEN 1 THEN 2 END"
    assert not kinds.can_be_followed(text)
    assert (outcome(server, text, "\n;DO 0") == outcome(server, text, "")) == (server.flavour == "mariadb")


@pytest.mark.parametrize(
    "text", ["/*!99999 SELECT 1 */", "/*M!999999\\- sandbox */ -- x\n/*!99999 SELECT 1 */", "/*+ x */"]
)
def test_statement_that_may_be_nothing_is_sent_alone(server: Server, text: str) -> None:
    assert not kinds.can_be_followed(text)
    assert isinstance(outcome(server, text, ""), list)
    assert outcome(server, text, "\n;DO 0") == 1064  # syntax error
