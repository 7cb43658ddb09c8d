"""Random SQL scripts whose statements are known, for the tests of the splitter."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

_TEXT = [" ", "\n", "-- x", "DELIMITER //", *"a ü 😀 ; -- # /* */ // $$ go %s ? {x}".split()]
_VALUES = st.one_of(
    st.lists(st.sampled_from([*_TEXT, "''", '"', "`", "\\'", "\\\\", "\\n", '\\"']), max_size=6).map(
        lambda parts: f"'{''.join(parts)}'"
    ),
    st.lists(st.sampled_from([*_TEXT, '""', "'", "`", '\\"', "\\\\", "\\t"]), max_size=6).map(
        lambda parts: f'"{"".join(parts)}"'
    ),
    st.sampled_from(["1", "5--3", "2*/* it's; */3", "2 /* a\n;b */ * 3", "CASE WHEN 1 THEN 2 END", "(1)", "0x41"]),
    st.sampled_from(["1 /*! +1 */", "1 /*!50001 +1 */", "/*!50001 '*' */", "1 # it's;\n+ 2", "1 --\n+ 2", "1-- \n"]),
)
_ALIASES = st.lists(st.sampled_from("x ; ' \" -- # /* */ `` \\ $$ //".split()), max_size=4).map(
    lambda parts: f"`n{''.join(parts)}`"
)
_BEFORE = ["", "", "\n", "  ", "/* c; */", "/* it's\n; */ ", "-- it's;\n", "--\n", "# `x\n", "-- // $$ go\n", "\t\n\n"]
_DELIMITERS = ["//", "$$", ";;", "|", "go", "@@end", "#!", "!!"]


@dataclass(frozen=True)
class Script:
    """A script, and what a client sends for it."""

    text: str
    statements: list[str]


@st.composite
def selects(draw: st.DrawFn) -> str:
    """A statement that every server takes, with much in it that is not what it looks like."""
    hint = draw(st.sampled_from(["", "", "", "/*+ it's; */ ", "/* c */ "]))
    columns = []
    for value in draw(st.lists(_VALUES, min_size=1, max_size=3)):
        alias = draw(st.one_of(st.none(), _ALIASES))
        columns.append(f"{value} AS {alias}" if alias else f"{value} + 0")
    return f"SELECT {hint}{', '.join(columns)}"


@st.composite
def scripts(draw: st.DrawFn, *, commands: bool = True) -> Script:
    r"""A script of the rules that both stock clients share; with ``commands`` also their ``\g`` and ``\G``."""
    parts, found = [], []
    delimiter = ";"
    for number in range(draw(st.integers(0, 5))):
        if draw(st.integers(0, 3)) == 0:
            delimiter = draw(st.sampled_from([";", *_DELIMITERS]))
            word = draw(st.sampled_from(["DELIMITER", "delimiter", "  Delimiter ", "\tDELIMITER  "]))
            quote = draw(st.sampled_from(["", "", "'", '"', "`"]))
            parts.append(f"\n{word} {quote}{delimiter}{quote}{draw(st.sampled_from(['', ' ', ' x']))}\n")
        statement = draw(selects())
        # MySQL logs a routine without conditional comments that it leaves out.
        if delimiter != ";" and "/*!" not in statement and draw(st.booleans()):
            statement = f"CREATE PROCEDURE p{number}()\nBEGIN\n  {statement};\n  -- it's {delimiter}\n  SELECT 2;\nEND"
        found.append(statement)
        parts += [draw(st.sampled_from(_BEFORE)), statement, draw(st.sampled_from(["", " ", "\n", " /* c; */ "]))]
        if commands and draw(st.integers(0, 4)) == 0:
            # Without a comment behind: MySQL's client would not obey a DELIMITER on the line after that.
            parts += [draw(st.sampled_from(["\\g", "\\G"])), draw(st.sampled_from(["", "\n"]))]
        else:
            parts += [delimiter, draw(st.sampled_from(["", "", f" {delimiter}"]))]
            parts.append(draw(st.sampled_from(["", " ", "\n", "\n\n", " -- it's;\n", " # x\n"])))
    if delimiter == ";" and draw(st.booleans()):
        found.append(draw(selects()))
        parts += ["\n", found[-1]]
    text = "".join(parts)
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return Script(draw(st.sampled_from(["", "\ufeff"])) + text, found)


_PIECES = "SELECT|x|;|;|;|'|\"|`|\\|\\'|--|-- |#|-|*|/|/*|*/|/*!|/*M!|/*+|$$|$t$|DELIMITER //|//|go|\\g|\\G|\\N|\\-|ü"
_LINES = ["\nDELIMITER //\n", "\nDELIMITER ;\n", "\ndelimiter 'go'\n", "\nuse x\n"]
_BLANKS = [" ", "\n", "\r\n", "\t", "\0", "\ufeff"]
NASTY = st.lists(st.sampled_from([*_PIECES.split("|"), *_LINES, *_BLANKS]), max_size=20).map("".join)
"""Any text, much of it nonsense."""
