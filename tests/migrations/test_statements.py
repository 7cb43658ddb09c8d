"""Statements are classified so that a kill, a retry or a later session never runs one twice or differently."""

from __future__ import annotations

import pytest

from sharedvol.migrations.sql import session_state
from sharedvol.migrations.sql import statements as kinds
from sharedvol.migrations.sql.mysql_script import parse_script

DUMP_HEAD = """/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB
/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!40101 SET NAMES utf8mb4 */;
/*!40103 SET @OLD_TIME_ZONE=@@TIME_ZONE */;
/*!40103 SET TIME_ZONE='+00:00' */;
/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;
/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;
/*M!100616 SET @OLD_NOTE_VERBOSITY=@@NOTE_VERBOSITY, NOTE_VERBOSITY=0 */;
DROP TABLE IF EXISTS `t`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `t` (`a` int(11));
/*!40101 SET character_set_client = @saved_cs_client */;
LOCK TABLES `t` WRITE;
/*!40000 ALTER TABLE `t` DISABLE KEYS */;
INSERT INTO `t` VALUES (1,'see @home, LAST_INSERT_ID()');
/*!40000 ALTER TABLE `t` ENABLE KEYS */;
UNLOCK TABLES;
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER b BEFORE INSERT ON t FOR EACH ROW
BEGIN SET @n = @m; END */;;
DELIMITER ;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */
/*!50001 VIEW `v` AS select 1 AS `1` */;
/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;
/*!40101 SET SQL_MODE=@OLD_SQL_MODE */;
/*!40014 SET UNIQUE_CHECKS=@OLD_UNIQUE_CHECKS */;
/*!40101 SET CHARACTER_SET_CLIENT=@OLD_CHARACTER_SET_CLIENT */;
/*M!100616 SET NOTE_VERBOSITY=@OLD_NOTE_VERBOSITY */;
"""


@pytest.mark.parametrize(
    ("text", "words", "heading"),
    [
        ("alter table Orders2 ADD x INT", ("ALTER", "TABLE", "ORDERS2"), "alter table Orders2"),
        ("DROP TABLE `orders`", ("DROP", "TABLE", "ORDERS"), "DROP TABLE orders"),
        ("((SELECT 1))", ("SELECT", "", ""), "SELECT"),
        ("INSERT INTO t VALUES ('secret')", ("INSERT", "INTO", "T"), "INSERT INTO t"),
        ("SET @x = 'secret'", ("SET", "", ""), "SET"),
        ("/*!40101 SET NAMES utf8 */", ("SET", "NAMES", "UTF8"), "SET NAMES utf8"),
        ("/*!50003 CREATE*/ /*!50017 DEFINER=`a`@`b`*/", ("CREATE", "DEFINER", ""), "CREATE DEFINER"),
        ("/*M!999999\\- enable the sandbox mode */ \n-- x\n/*!1 SET @a=1 */", ("SET", "", ""), "SET"),
        ("CREATE /* x */ TEMPORARY -- y\nTABLE t", ("CREATE", "TEMPORARY", "TABLE"), "CREATE TEMPORARY TABLE"),
        ("'text'", ("", "", ""), ""),
        ("", ("", "", ""), ""),
        ("/*!1*/" * 5_000, ("", "", ""), ""),
    ],
)
def test_words_are_those_of_the_statement(text: str, words: tuple[str, str, str], heading: str) -> None:
    assert (kinds.words(text), kinds.heading(text)) == (words, heading)


def said(text: str) -> set[str]:
    """What holds of a statement."""
    names = ("commits_implicitly", "sets_session", "is_repeatable", "is_whole", "can_be_followed")
    found = {name for name in names if getattr(kinds, name)(text)}
    return found | ({"is_replayed"} if session_state.is_replayed(text) else set())


COMMITS, SETS, REPEATS = "commits_implicitly", "sets_session", "is_repeatable"
WHOLE, FOLLOWED, REPLAYED = "is_whole", "can_be_followed", "is_replayed"
PLAIN = {WHOLE, FOLLOWED}
SETTING = {SETS, REPEATS, WHOLE, FOLLOWED, REPLAYED}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("INSERT INTO t VALUES (1)", PLAIN),
        ("UPDATE t SET a = 1; UPDATE t SET a = 2", {FOLLOWED}),
        ("CREATE TABLE t (a INT)", PLAIN | {COMMITS}),
        ("CREATE TABLE IF NOT EXISTS t (a INT); INSERT INTO t VALUES (1)", {COMMITS, FOLLOWED}),
        ("CREATE OR REPLACE TABLE t (a INT)", PLAIN | {COMMITS, REPEATS}),
        ("CREATE TEMPORARY TABLE t (a INT)", PLAIN),
        ("CREATE OR REPLACE TEMPORARY TABLE t (a INT)", PLAIN | {REPEATS}),
        ("CREATE /*!32302 TEMPORARY */ TABLE t (a INT)", PLAIN),
        ("DROP TEMPORARY TABLE t", PLAIN),
        ("DROP TABLE t", PLAIN | {COMMITS}),
        ("DROP TABLE IF EXISTS t", PLAIN | {COMMITS, REPEATS}),
        ("DROP TABLE IF EXISTS t, u", {COMMITS, FOLLOWED}),
        ("ALTER TABLE user ADD a INT, ADD b INT", PLAIN | {COMMITS}),
        ("CREATE USER a, b", {COMMITS, FOLLOWED}),
        ("GRANT SELECT, INSERT ON a.* TO b", PLAIN | {COMMITS}),
        ("/*!40000 ALTER TABLE t DISABLE KEYS */", {COMMITS, WHOLE}),
        ("ANALYZE TABLE t", PLAIN | {COMMITS}),
        ("ANALYZE UPDATE t SET a = 1", PLAIN),
        ("TRUNCATE t", PLAIN | {COMMITS, REPEATS}),
        ("CALL p()", {FOLLOWED}),
        ("/*!50003 CALL p() */", set()),
        ("LOAD DATA INFILE 'x' INTO TABLE t", {FOLLOWED}),
        ("BEGIN NOT ATOMIC INSERT INTO t VALUES (1); END", {FOLLOWED}),
        ("BEGIN", {FOLLOWED, REPEATS}),
        ("COMMIT", PLAIN | {REPEATS}),
        ("SELECT 1", PLAIN | {REPEATS}),
        ("SELECT next_id()", PLAIN),
        ("SELECT NEXT VALUE FOR s", PLAIN),
        ("SELECT a FROM t FOR UPDATE", PLAIN),
        ("SELECT a INTO OUTFILE 'x' FROM t", PLAIN),
        ("/*M!100000 EXPLAIN */ DELETE FROM t", {WHOLE}),
        ("USE a", SETTING),
        ("SET NAMES utf8mb4", SETTING),
        ("SET @a = 1, @@sql_mode = ''", SETTING),
        ("SET @a := @b + 1", SETTING),
        ("/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='X' */", SETTING - {FOLLOWED}),
        ("SET sql_mode = (SELECT REPLACE(@@sql_mode, 'ONLY_FULL_GROUP_BY', ''))", SETTING),
        ("SET @a = (SELECT COUNT(*) FROM t)", SETTING - {REPLAYED}),
        ("SET @a = NOW()", SETTING - {REPLAYED}),
        ("SET @a = CURRENT_TIMESTAMP", SETTING - {REPLAYED}),
        ("SET @a = @@warning_count", SETTING - {REPLAYED}),
        ("SET @a = LAST_INSERT_ID()", SETTING - {REPEATS, REPLAYED}),
        ("SET @a = next_id()", SETTING - {REPEATS, REPLAYED}),
        ("SET @a = other.count(1)", SETTING - {REPEATS, REPLAYED}),
        ("SET @a = NEXT VALUE FOR s", SETTING - {REPEATS, REPLAYED}),
        ("SET @a = (NEXT  VALUE FOR s)", SETTING - {REPEATS, REPLAYED}),
        ("SET TRANSACTION READ ONLY", SETTING - {REPLAYED}),
        ("SET SESSION TRANSACTION READ ONLY", SETTING),
        ("SET GLOBAL a = 1", PLAIN),
        ("SET /* x */ GLOBAL a = 1", PLAIN),
        ("SET @@GLOBAL.a = @@GLOBAL.a + 1", PLAIN),
        ("SET SESSION a = 1, PERSIST b = 1", PLAIN),
        ("SET @old = @@GLOBAL.a", SETTING),
        ("SET PASSWORD = 'x'", PLAIN),
        ("SET STATEMENT max_statement_time = 1 FOR INSERT INTO t VALUES (1)", {FOLLOWED}),
        ("SET/**/STATEMENT max_statement_time = 1 FOR INSERT INTO t VALUES (1)", {FOLLOWED}),
        ("CREATE PROCEDURE p() SELECT 1", {COMMITS, WHOLE}),
        ("CREATE FUNCTION f() RETURNS INT RETURN CASE 1 WHEN 1 THEN 2 END", {COMMITS, WHOLE}),
        ("CREATE PROCEDURE p() SELECT begin, 1 AS end", {COMMITS, WHOLE}),
        ("CREATE PROCEDURE p() SELECT 'BEGIN; ' AS a /* ; */ -- END\n, 1 end", {COMMITS, WHOLE}),
        ("CREATE PROCEDURE p() BEGIN DO CASE 1 WHEN 1 THEN 2 END; IF 1 THEN DO 0; END IF; END", PLAIN | {COMMITS}),
        ("CREATE PROCEDURE p() x: BEGIN BEGIN DO 0; END; CASE 1 WHEN 1 THEN DO 0; END CASE; END x", PLAIN | {COMMITS}),
        ("CREATE PROCEDURE p() BEGIN SELECT 1; END; INSERT INTO t VALUES (1)", {COMMITS}),
        ("CREATE OR REPLACE PROCEDURE p() BEGIN SELECT 1; END", PLAIN | {COMMITS, REPEATS}),
        ("CREATE OR REPLACE EVENT e ON SCHEDULE AT NOW() DO INSERT INTO t VALUES (1)", {COMMITS, WHOLE}),
        ("/*!50003 CREATE*/ /*!50003 TRIGGER b BEFORE INSERT ON t FOR EACH ROW BEGIN DO 0; END */", {COMMITS, WHOLE}),
    ],
)  # fmt: skip
def test_statement_is_of_its_kind(text: str, kind: set[str]) -> None:
    assert said(text) == kind


def obstacle(script: str) -> str | None:
    """With the cut where the script has a bar."""
    before, after = script.split("|")
    return session_state.obstacle(parse_script(before + after), len(parse_script(before)))


@pytest.mark.parametrize(
    "script",
    [
        "INSERT INTO t VALUES (1);| INSERT INTO t VALUES (2)",
        "SET @a = 1; SET @b = CONCAT(@a, 'x');| INSERT INTO t VALUES (@b)",
        "SET @a = 1; INSERT INTO t VALUES (@a);| INSERT INTO t VALUES (@a)",
        "SELECT COUNT(*) INTO @a FROM t; INSERT INTO t VALUES (@a);| SET @a = 1; INSERT INTO t VALUES (@a)",
        "SELECT 1;| SELECT COUNT(*) INTO @a FROM t; INSERT INTO t VALUES (@a)",
        "SELECT 1;| SELECT @a := 1; SELECT @a",
        "SELECT 1;| LOAD DATA INFILE 'x' INTO TABLE t (@a) SET a = NULLIF(@a, '')",
        "SET @a = NOW();| SELECT 1",
        "SET sql_mode = '', @a = 1;| SELECT @a",
        "INSERT INTO t VALUES ('@a');| INSERT INTO t VALUES ('@a', \"@b\", 'c@d') -- @e",
        "SELECT 1 INTO @a;| INSERT INTO t VALUES ('it\\'s @a', \"\\\"@a\", '\\\\@a', \\N)",
        "GRANT SELECT ON a.* TO 'b'@'c';| GRANT SELECT ON a.* TO 'b'@'c', `b`@`c`, b@c",
        "SELECT 1 INTO @a;| CREATE DEFINER=a@b TRIGGER c BEFORE INSERT ON t FOR EACH ROW SET NEW.d = @a",
        "CREATE TABLE t (a INT);| INSERT INTO t VALUES (1); INSERT INTO u VALUES (LAST_INSERT_ID())",
        "INSERT INTO t VALUES (1);| SELECT 1; SELECT ROW_COUNT()",
        "PREPARE a FROM 'DO 1'; PREPARE a2 FROM 'DO 1'; DEALLOCATE PREPARE a; DROP PREPARE a2;| SELECT 1",
        "CREATE TEMPORARY TABLE a (b INT); SELECT 1;|",
        "CALL a();| CALL a()",
        "SET GLOBAL a = 1; SET PASSWORD = 'x';| SELECT 1",
        "CREATE TABLE t (a INT COMMENT 'temporary table');| SELECT 1",
    ],
)
def test_other_session_can_go_on(script: str) -> None:
    assert obstacle(script) is None


@pytest.mark.parametrize("text", ["INSERT INTO t VALUES (1)", "SET @a = @a + 1", "DROP TABLE t"])
def test_nothing_is_missing_before_the_first_statement(text: str) -> None:
    assert session_state.obstacle(parse_script(text), 0) is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("CREATE TEMPORARY TABLE a (b INT);| SELECT * FROM a", "statement 1 made a temporary table"),
        ("CREATE OR REPLACE TEMPORARY TABLE a (b INT);| SELECT 1", "statement 1 made a temporary table"),
        ("CREATE /*!32302 TEMPORARY */ TABLE a (b INT);| SELECT 1", "statement 1 made a temporary table"),
        ("EXECUTE IMMEDIATE 'CREATE TEMPORARY TABLE a (b INT)';| SELECT 1", "statement 1 made a temporary table"),
        ("SELECT 1; PREPARE a FROM 'DO 1';| EXECUTE a", "statement 2 is a PREPARE"),
        (
            "PREPARE s1 FROM 'DO 1'; PREPARE s2 FROM 'DO 1'; DEALLOCATE PREPARE s2;| EXECUTE s1",
            "statement 1 is a PREPARE",
        ),
        ("SELECT GET_LOCK('a', 1);| SELECT 1", "statement 1 took a lock"),
        ("SELECT MAX(a) INTO @a FROM t;| INSERT INTO t VALUES (@a)", "statement 2 needs the value that @a had"),
        ("SELECT MAX(a) INTO @`a` FROM t;| INSERT INTO t VALUES (@'a')", "statement 2 needs the value that @a had"),
        ("SELECT @A := 1;| SELECT 1; SELECT @a", "statement 3 needs the value that @a had"),
        ("SET @a = (SELECT COUNT(*) FROM t);| SET @b = @a", "statement 2 needs the value that @a had"),
        ("SET @a = (SELECT COUNT(*) FROM t); SET @b = @a;| SELECT @b", "statement 3 needs the value that @b had"),
        ("SELECT 1 INTO @a; SET @b = 1, @c = @a;| SELECT @c", "statement 3 needs the value that @c had"),
        ("SET @a = 1; SELECT COUNT(*) INTO @a FROM t;| SELECT @a", "statement 3 needs the value that @a had"),
        ("SET @a = 1; CALL p(@a);| SELECT @a", "statement 3 needs the value that @a had"),
        ("SET @a = 1; SET @c = 1, @a = (SELECT b FROM t);| SELECT @a", "statement 3 needs the value that @a had"),
        ("SET @a = 1; SET @c = (SELECT @a := 2 FROM t);| SELECT @a", "statement 3 needs the value that @a had"),
        ("SET @a = NOW();| SELECT @a", "statement 2 needs the value that @a had"),
        ("SET @a = CURRENT_TIMESTAMP;| SELECT @a", "statement 2 needs the value that @a had"),
        ("SET @a = next_id();| SELECT @a", "statement 2 needs the value that @a had"),
        ("SET @a = LAST_INSERT_ID();| SELECT @a", "statement 2 needs the value that @a had"),
        ("CALL p();| SELECT @a", "statement 2 needs the value that @a had"),
        ("SELECT 1;| SELECT @a", "statement 2 needs the value that @a had"),
        ("SELECT 1;| SELECT @a := @a + 1", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| SELECT b INTO @a FROM t WHERE 0", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| CALL p()", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| PREPARE s FROM 'SELECT @a'", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| SET @b = 'SELECT @a'", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| UPDATE user SET b = 'it\\'s', c = @a", "statement 2 needs the value that @a had"),
        ("SELECT 1 INTO @a;| CREATE TABLE event AS SELECT @a", "statement 2 needs the value that @a had"),
        ("SET @a = @@GLOBAL.x; SET GLOBAL x = 1;| SET GLOBAL x = @a", "statement 3 needs the value that @a had"),
        ("SELECT @@sql_mode INTO @a; SET sql_mode = ''; SET sql_mode = @a;| SELECT 1", "statement 3 set the session"),
        ("SET time_zone = (SELECT a FROM t);| SELECT 1", "statement 1 changed the session"),
        ("SET sql_mode = f();| SELECT 1", "statement 1 changed the session"),
        ("SET @a = 1, SESSION sql_mode = f();| SELECT 1", "statement 1 changed the session"),
        ("SET SESSION a = 1, GLOBAL b = 1;| SELECT 1", "statement 1 changed the session"),
        ("SET INSERT_ID = 5;| INSERT INTO t VALUES (NULL)", "statement 1 was meant for the statement after it"),
        ("INSERT INTO t VALUES (1);| INSERT INTO u VALUES (LAST_INSERT_ID())", "statement 2 needs what the statement"),
        ("INSERT INTO t VALUES (1);| SELECT 1; SELECT @@identity", "statement 3 needs what the statement"),
        ("INSERT t VALUES (1);| INSERT log VALUES (1); INSERT u VALUES (LAST_INSERT_ID())", "statement 3 needs what"),
        ("CALL p();| SELECT LAST_INSERT_ID()", "statement 2 needs what the statement"),
        ("UPDATE t SET a = 1;| INSERT INTO u VALUES (ROW_COUNT())", "statement 2 needs what the statement"),
        ("SELECT SQL_CALC_FOUND_ROWS 1;| SELECT FOUND_ROWS()", "statement 2 needs what the statement"),
    ],
)
def test_other_session_cannot_go_on(script: str, why: str) -> None:
    assert (obstacle(script) or "")[: len(why)] == why


def test_variable_is_not_missed_where_a_backslash_escapes_nothing() -> None:
    statements = parse_script("SELECT 1 INTO @a; INSERT t VALUES ('C:\\', @a, '\\')", backslash_escapes=False)
    assert session_state.obstacle(statements, 1) is not None


def test_dump_can_be_gone_on_with_anywhere() -> None:
    statements = parse_script(DUMP_HEAD)
    assert len(statements) > 20
    for done in range(len(statements) + 1):
        assert session_state.obstacle(statements, done) is None
    assert all(
        session_state.is_replayed(one.text) for one in statements if " SET " in one.text and "TRIGGER" not in one.text
    )
