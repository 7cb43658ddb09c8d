"""R takes a script apart as Python does: every case that Python's tests know, and hundreds of random ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from migrations import test_script
from support.r import rmigrations
from support.sql_scripts import NASTY, scripts

from sharedvol.errors import ScriptError
from sharedvol.migrations.sql.mysql_script import parse_script

# All of them in one process, whose start costs more than a thousand small scripts.
BATCH = """
hexed <- function(text) paste(c("", as.character(charToRaw(text))), collapse = "")
bytes <- function(line) {
  if (!nzchar(line)) return(raw())
  from <- seq(1L, nchar(line), by = 2L)
  as.raw(strtoi(substring(line, from, from + 1L), 16L))
}
input <- file("stdin")
for (line in readLines(input)) {
  escapes <- substr(line, 1L, 1L) == "1"
  told <- tryCatch({
    found <- sv__parse_sql(bytes(substring(line, 2L)), escapes)
    c("ok", paste(found$line, vapply(found$text, hexed, ""), sep = ":"))
  }, sv_script_error = function(error) c("refused", error$line, hexed(error$what)))
  cat(told, "\\n")
}
"""
Outcome = tuple[Any, ...]
BOUNDED = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def in_r(texts: Iterable[bytes], *, escapes: bool = True, **environment: str) -> list[Outcome]:
    """What R makes of each text."""
    lines = "".join(f"{int(escapes)}{text.hex()}\n" for text in texts)
    with rmigrations.reaped(rmigrations.start(BATCH, **environment)) as process:
        out, err = process.communicate(lines, timeout=rmigrations.LIMIT)
    assert process.returncode == 0, err
    return [outcome(line.split()) for line in out.splitlines()]


def outcome(words: list[str]) -> Outcome:
    if words[0] == "refused":
        return int(words[1]), bytes.fromhex(words[2]).decode()
    pairs = (word.split(":") for word in words[1:])
    return tuple((int(line), bytes.fromhex(text).decode()) for line, text in pairs)


def in_python(text: str, *, escapes: bool = True) -> Outcome:
    try:
        return tuple((one.line, one.text) for one in parse_script(text, backslash_escapes=escapes))
    except ScriptError as error:
        return error.line, error.what


def assert_alike(texts: list[str], *, escapes: bool = True, **environment: str) -> None:
    found = in_r([text.encode() for text in texts], escapes=escapes, **environment)
    assert len(found) == len(texts)
    different = [
        (text, ours, theirs)
        for text, ours in zip(texts, found, strict=True)
        if ours != (theirs := in_python(text, escapes=escapes))
    ]
    assert not different, f"{len(different)} of {len(texts)}, the first: {different[0]}"


def known() -> list[str]:
    """The first argument of each case in Python's tests of the splitter."""
    texts = [script for script, _ in test_script.SENT.values()]
    for test in vars(test_script).values():
        for mark in getattr(test, "pytestmark", ()):
            if mark.name == "parametrize" and "script" in mark.args[0]:
                texts += [case[0] for case in mark.args[1]]
    delimiters = "// $$ ;; | go # -- /* */ @ d abcdefghijklmno".split()
    texts += [
        f"DELIMITER {quote}{delimiter}{quote}\nSELECT 1; {delimiter} SELECT 2{delimiter}\ndelimiter ;\nSELECT 3;"
        for delimiter in delimiters
        for quote in ("", "'", '"', "`")
    ]
    return texts + [text.replace("\n", "\r\n") for text in texts]


def drawn(strategy: st.SearchStrategy[Any], settings_: settings = BOUNDED) -> list[Any]:
    """Examples, the same every time."""
    found = []

    @settings_
    @given(strategy)
    def draw(example: Any) -> None:
        found.append(example)

    draw()
    return found


def test_every_known_case_comes_out_as_in_python() -> None:
    texts = known()
    assert len(texts) > 250
    assert_alike(texts)
    assert_alike(texts, escapes=False, LC_ALL="C")


def test_random_scripts_come_out_as_they_went_in() -> None:
    made = drawn(scripts())
    assert len(made) > 200
    found = in_r(script.text.encode() for script in made)
    assert [[text for _, text in statements] for statements in found] == [script.statements for script in made]


@pytest.mark.parametrize("escapes", [True, False])
def test_random_nonsense_is_split_or_refused_as_in_python(escapes: bool) -> None:
    texts = drawn(NASTY, settings(BOUNDED, max_examples=1000))
    assert len(texts) > 700
    assert_alike(texts, escapes=escapes)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_text_is_utf8_whatever_the_locale(locale: str) -> None:
    texts = ["\ufeffSELECT 'ü😀' AS `é`;\u00a0x;", "é$$ ;", "$é$ ; $é$;x", "a\\é", "SELECT 1;-- ü;\n-- é"]
    assert_alike(texts, LC_ALL=locale)
    assert in_r([b"a;\nb '\xfc';", b"\xed\xa0\x80"], LC_ALL=locale) == [
        (2, "not UTF-8: save it as UTF-8"),
        (1, "not UTF-8: save it as UTF-8"),
    ]


def test_strings_of_r_come_back_as_utf8() -> None:
    code = """
    for (text in list("SELECT '\\u00fc';x", iconv("SELECT '\\u00fc';x", "UTF-8", "latin1"))) {
      found <- sv_split_sql(text)
      stopifnot(Encoding(found) == c("UTF-8", "unknown"), found == c("SELECT '\\u00fc'", "x"))
    }
    stopifnot(identical(sv_split_sql(""), character()))
    error <- tryCatch(sv_split_sql("a 'b"), error = identity)
    stopifnot(inherits(error, c("sv_script_error", "sv_error"), which = TRUE) > 0)
    cat(conditionMessage(error))
    """
    assert rmigrations.run(code) == "line 1: the string that opens with ' is not closed"


def test_work_does_not_grow_with_the_square_of_the_text(tmp_path: Path) -> None:
    # At 100,000 bytes what looks at all the rest for each byte would exceed the limit many times over.
    pieces = [
        "INSERT INTO t VALUES (1, 'it''s', \"a\\\"b\", `x` /* c */, 'ü'); -- x\n",
        "-",
        "/*",
        "'",
        "$",
        "$$",
        "\\N",
    ]
    pieces += ["/*! ", "/*! x */", "/*/*! x */", "DELIMITER // ; DELIMITER ; //", "DELIMITER //\nx//\nDELIMITER ;\n"]
    pieces += ["use x\n", " ", "\n", "x", "\\'"]
    code = """
    bytes <- readBin(arguments[1], "raw", 1e4)
    for (piece in strsplit(rawToChar(bytes), "\\001", fixed = TRUE)[[1]]) {
      text <- strrep(piece, 100000L %/% nchar(piece, "bytes"))
      for (head in c("", "'", "/*! ")) tryCatch(sv_split_sql(paste0(head, text)), sv_script_error = identity)
    }
    cat("ended")
    """
    path = tmp_path / "pieces"
    path.write_text("\1".join(pieces), encoding="utf-8")
    assert rmigrations.run(code, path) == "ended"
