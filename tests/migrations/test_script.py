"""A script is taken apart by the rules of the stock clients, rule by rule."""

from __future__ import annotations

import pickle

import pytest

from sharedvol.errors import MigrationError, ScriptError
from sharedvol.migrations.sql.mysql_script import Statement, parse_script, split_script

# What both stock clients, mysql 9.7 and mariadb 10.11, were seen to send: comments around statements left out.
SENT = {
    "no last newline": ("SELECT 1;\nSELECT 2", ["SELECT 1", "SELECT 2"]),
    "a comment behind the semicolon": ("SELECT 1; -- one\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
    "a semicolon in a string": (
        "INSERT INTO t VALUES ('a;b');\nSELECT 2;\n",
        ["INSERT INTO t VALUES ('a;b')", "SELECT 2"],
    ),
    "semicolons in a block comment": ("/* a;\n b;\n*/\nSELECT 1;\n", ["SELECT 1"]),
    "a quote and a semicolon behind a hash": ("# it's first;\nSELECT 1;\n", ["SELECT 1"]),
    "a letter that is an i to Unicode alone": ("del\u0131miter //\nSELECT 1;\n", ["del\u0131miter //\nSELECT 1"]),
    "dashes without a space": ("SELECT 5--3;\nSELECT 2;\n", ["SELECT 5--3", "SELECT 2"]),
    "escaped quotes": (
        "SELECT 'it\\'s;\n', 'it''s;\n', \"a\\\";\n\";\nSELECT 2;\n",
        ["SELECT 'it\\'s;\n', 'it''s;\n', \"a\\\";\n\"", "SELECT 2"],
    ),
    "a delimiter that is not set back": (
        "DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END //\nCALL p() //\n",
        ["CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END", "CALL p()"],
    ),
    "dollars as delimiter": (
        "DELIMITER $$\nCREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN SET NEW.x = 1; END$$\nDELIMITER ;\n",
        ["CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN SET NEW.x = 1; END"],
    ),
    "delimiter in small letters": (
        "delimiter //\nCREATE PROCEDURE p() BEGIN SELECT 1; END //\ndelimiter ;\nSELECT 2;\n",
        ["CREATE PROCEDURE p() BEGIN SELECT 1; END", "SELECT 2"],
    ),
    "the word in a string": (
        "INSERT INTO t VALUES ('the DELIMITER is ;');\nSELECT 2;\n",
        ["INSERT INTO t VALUES ('the DELIMITER is ;')", "SELECT 2"],
    ),
    "a routine without DELIMITER": (
        "CREATE PROCEDURE p()\nBEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\nSELECT 3;\n",
        ["CREATE PROCEDURE p()\nBEGIN\n  SELECT 1", "SELECT 2", "END", "SELECT 3"],
    ),
    "a byte order mark": ("\ufeffSELECT 1;\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
    "nothing": ("", []),
    "semicolons in a row": ("SELECT 1;;;\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
    "the delimiter in strings": (
        "DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 'http://x'; END //\n"
        "INSERT INTO t VALUES ('see http:// \nfoo')//\nDELIMITER ;\n",
        ["CREATE PROCEDURE p() BEGIN SELECT 'http://x'; END", "INSERT INTO t VALUES ('see http:// \nfoo')"],
    ),
    "a hint": (
        "SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1;\nSELECT 2;\n",
        ["SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1", "SELECT 2"],
    ),
    "a backslash at the end of a string": (
        "INSERT INTO t VALUES ('C:\\\\');\nSELECT 2;\n",
        ["INSERT INTO t VALUES ('C:\\\\')", "SELECT 2"],
    ),
    "CASE and IF": (
        "SELECT CASE WHEN 1 THEN 2 END;\nSELECT IF(1,2,3);\nSELECT 4;\n",
        ["SELECT CASE WHEN 1 THEN 2 END", "SELECT IF(1,2,3)", "SELECT 4"],
    ),
    "delimiter behind blanks": (
        "  DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 1; END //\n  DELIMITER ;\nSELECT 2;\n",
        ["CREATE PROCEDURE p() BEGIN SELECT 1; END", "SELECT 2"],
    ),
    "per cent": ("SELECT '%s', 100 % 7, '50%';\nSELECT 2;\n", ["SELECT '%s', 100 % 7, '50%'", "SELECT 2"]),
    "question marks": ("SELECT 'a?b', 1 ? 2;\nSELECT 2;\n", ["SELECT 'a?b', 1 ? 2", "SELECT 2"]),
    "tabs": ("SELECT\t1\t;\n\n\n;\nSELECT 2;\n", ["SELECT\t1", "SELECT 2"]),
}


@pytest.mark.parametrize(("script", "sent"), SENT.values(), ids=list(SENT))
def test_statements_are_those_the_clients_sent(script: str, sent: list[str]) -> None:
    assert split_script(script) == sent
    assert split_script(script.replace("\n", "\r\n")) == sent


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        (
            "SELECT 'a' 'b;', \"it's;\", `it's;`, 'say \"x;\"';x",
            ["SELECT 'a' 'b;', \"it's;\", `it's;`, 'say \"x;\"'", "x"],
        ),
        ("SELECT `a``;b`, `c\\`;x", ["SELECT `a``;b`, `c\\`", "x"]),
        ("SELECT '\r\n\r\n', 1\r\n;x", ["SELECT '\n\n', 1", "x"]),
        ("a /* ; ' */ b -- ; '\nc # ; '\nd;x", ["a /* ; ' */ b -- ; '\nc # ; '\nd", "x"]),
        ("/**/a/**//* ; */;/*/ ; */b", ["a", "b"]),
        ("--\n--x;\n-- y\n  --z;'\na;--x\n-- ", ["a"]),
        ("a\n--x\n;b --\tc;\n;c --", ["a\n--x", "b", "c"]),
        ("a--b;c --", ["a--b", "c"]),
        ("SELECT 2*/* two; */3;x", ["SELECT 2*/* two; */3", "x"]),
        (
            "/*!40101 SET a=';' */;/*M!100100 b */;a /*! b */;",
            ["/*!40101 SET a=';' */", "/*M!100100 b */", "a /*! b */"],
        ),
        (
            "/*!50001 a /* ; */ b */;/*!50001 a\n/* ; */ '*/' */;x",
            ["/*!50001 a /* ; */ b */", "/*!50001 a\n/* ; */ '*/' */", "x"],
        ),
        (
            "/*M!999999\\- enable the sandbox mode */ \n-- Dump\nx;",
            ["/*M!999999\\- enable the sandbox mode */ \n-- Dump\nx"],
        ),
        ("/*\n/*!40101 SET a=1 */;\n/*!40101 DROP TABLE b */;\n*/ x;", ["x"]),
        ("/*+ banner ; */ a;/*+ banner */", ["a"]),
        ("SELECT /*+ NO_INDEX(t) ; ' */ a /*+ b */;x", ["SELECT /*+ NO_INDEX(t) ; ' */ a /*+ b */", "x"]),
        ("a\\gb \\Gc\\g\\g\\N;", ["a", "b", "c", "\\N"]),
        ("SELECT \\N, 1;x", ["SELECT \\N, 1", "x"]),
        ("use a\nUSE `b`\n;use c;x", ["use a", "USE `b`", "use c", "x"]),
        ("use a -- here\nx", ["use a -- here", "x"]),
        ("a\nuse b\n;", ["a\nuse b"]),
        (
            "CREATE FUNCTION f() AS $$ it's; $$;SELECT $a$ $$;' $a$, b$$;x",
            ["CREATE FUNCTION f() AS $$ it's; $$", "SELECT $a$ $$;' $a$, b$$", "x"],
        ),
        ("a\x0b\x0c\r;\u00a0b", ["a", "\u00a0b"]),
        ("\ufeff\ufeffa", ["\ufeffa"]),
        ("help 'x';status_of = 1;", ["help 'x'", "status_of = 1"]),
    ],
)
def test_rule_of_the_client_is_followed(script: str, statements: list[str]) -> None:
    assert split_script(script) == statements


@pytest.mark.parametrize("delimiter", "// $$ ;; | go # -- /* */ @ d abcdefghijklmno".split())
@pytest.mark.parametrize("quote", ["", "'", '"', "`"])
def test_delimiter_can_be_any_text(delimiter: str, quote: str) -> None:
    script = f"DELIMITER {quote}{delimiter}{quote}\nSELECT 1; {delimiter} SELECT 2{delimiter}\ndelimiter ;\nSELECT 3;"
    assert split_script(script) == ["SELECT 1;", "SELECT 2", "SELECT 3"]


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("DELIMITER //\na//\nDELIMITER $$\nb;//$$\nDELIMITER ;\nc;", ["a", "b;//", "c"]),
        ("DELIMITER // -- and more\na//", ["a"]),
        ("DELIMITER //\t\r\na//\r\nDELIMITER ;\r\nb", ["a", "b"]),
        ("DELIMITER 'a b'\nx a b y a b", ["x", "y"]),
        ("DELIMITER go\nA GO b go G go", ["A GO b", "G"]),
        ("a; DELIMITER // ; b; //\nc //", ["a", "b;", "c"]),
        ("/* x */ DELIMITER // ;\nc //", ["c"]),
        ("a\nDELIMITER //\n;b;", ["a\nDELIMITER //", "b"]),
        ("delimiters = 1;", ["delimiters = 1"]),
        ("DELIMITER //\n//\n// a // //", ["a"]),
    ],
)
def test_delimiter_is_set_where_the_client_sets_it(script: str, statements: list[str]) -> None:
    assert split_script(script) == statements


@pytest.mark.parametrize(
    ("script", "line", "what"),
    [
        ("a;\nb 'c\n;", 2, "the string that opens with ' is not closed"),
        ("a\n'b\\'", 2, "the string that opens with ' is not closed"),
        ('a;\n\nb "c\n;', 3, 'the string that opens with " is not closed'),
        ("a `b\\``;\n", 1, "the quoted identifier that opens with ` is not closed"),
        ("a;\n/* b", 2, "the comment '/*' is not closed"),
        ("a;\nb\n/* c", 3, "the comment '/*' is not closed"),
        ("/*/", 1, "the comment '/*' is not closed"),
        ("a /*+ b", 1, "the comment '/*' is not closed"),
        ("\na /*! b", 2, "the comment '/*!' is not closed"),
        ("a\n/*M! b", 2, "the comment '/*!' is not closed"),
        ("a\n/*! b; */", 2, "the comment '/*!' is not closed before the delimiter ';'"),
        ("a\n$x$ b;", 2, "the text that opens with $x$ is not closed"),
        ("DELIMITER //\na;\nb//\nc;\n", 4, "the last statement does not end with its delimiter '//'"),
        ("a;\nb\\c;", 2, "the client command '\\\\c' is not SQL"),
        ("a\\\nb;", 1, "the client command '\\\\\\n' is not SQL"),
        ("a \\", 1, "the client command '\\\\' is not SQL"),
        ("/*! a \\g */;", 1, "the client command '\\\\g' is not SQL"),
        ("a;\n\n  source b.sql\nc;", 3, "the client command 'source' is not SQL"),
        ("a; SOURCE b.sql;", 1, "the client command 'source' is not SQL"),
        ("\nstatus;", 2, "the client command 'status' is not SQL"),
        ("exit\n", 1, "the client command 'exit' is not SQL"),
        ("go", 1, "the client command 'go' is not SQL"),
        ("? contents\n", 1, "the client command '?' is not SQL"),
        ("help contents\n", 1, "the client command 'help' is not SQL"),
        ("DELIMITER //\nsystem ls //", 2, "the client command 'system' is not SQL"),
        ("a;\nDELIMITER\n", 2, "DELIMITER must be followed by the delimiter"),
        ("DELIMITER ''\n", 1, "DELIMITER must be followed by the delimiter"),
        ("a;\nDELIMITER;", 2, "DELIMITER must be followed by the delimiter"),
        ("a; DELIMITER ;;\n", 1, "DELIMITER must be followed by the delimiter"),
        ("a; DELIMITER //\nb//", 1, "DELIMITER must stand at the start of its line"),
        ("/* a */ DELIMITER //\n", 1, "DELIMITER must stand at the start of its line"),
        ("DELIMITER a\\b\n", 1, "a delimiter cannot contain a backslash"),
        ("\n\nDELIMITER abcdefghijklmnop\n", 3, "a delimiter has at most 15 characters"),
        ("DELIMITER ü\n", 1, "the client never finds a delimiter that is not ASCII"),
        ("a;\n'\0'", 2, "a NUL character cannot be part of a statement"),
    ],
)
def test_error_tells_what_and_on_which_line(script: str, line: int, what: str) -> None:
    for text in (script, script.replace("\n", "\r\n")):
        with pytest.raises(ScriptError) as caught:
            split_script(text)
        assert (caught.value.line, caught.value.what[: len(what)]) == (line, what)
        assert str(caught.value).startswith(f"line {line}: ")


def test_error_is_a_migration_error_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ScriptError("x is not closed", 3)))
    assert isinstance(error, MigrationError | ValueError)
    assert (error.what, error.line, str(error)) == ("x is not closed", 3, "line 3: x is not closed")


def test_backslash_is_ordinary_without_escapes() -> None:
    script = "SELECT 'C:\\', \"D:\\\", 'it''s;';x"
    assert split_script(script, backslash_escapes=False) == ["SELECT 'C:\\', \"D:\\\", 'it''s;'", "x"]
    with pytest.raises(ScriptError, match="line 1: the string"):
        split_script("SELECT 'C:\\';")
    with pytest.raises(ScriptError, match=r"'\\\\c' is not SQL"):
        split_script("SELECT \\c;", backslash_escapes=False)


def test_statement_knows_the_line_where_it_begins() -> None:
    script = "\ufeff-- x\r\na;b\r\n\r\n;/*\r\n*/ c\r\n'\r\n';use d\r\nDELIMITER //\r\n\r\n  e//\r\nuse f\r\n"
    assert parse_script(script.replace("use d", "\r\nuse d")) == [
        Statement("a", 2),
        Statement("b", 2),
        Statement("c\n'\n'", 5),
        Statement("use d", 8),
        Statement("e", 11),
        Statement("use f", 12),
    ]
