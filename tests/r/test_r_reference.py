"""The reference for R is one file to source: it loads nothing, keeps to its names, and its page is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.processes import LIMIT
from support.r.rprocess import REFERENCE, R, quote, run_r
from support.servers import Server

PAGE = REFERENCE.with_name("README.md")
EXAMPLES = re.findall(r"^```r\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
DATABASE = 'host = "db", dbname = "shop", user = "app"'  # in examples: the server of the tests stands for it
ROOT = REFERENCE.parents[2]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for name in ("results", "logs", "locks", "cache", "migrations"):
        (tmp_path / name).mkdir()
    (tmp_path / "migrations" / "001_orders.sql").write_text("CREATE TABLE orders (id INT PRIMARY KEY);\n")
    code = EXAMPLES[number].replace('source("sharedvol.R")', "")
    if DATABASE in code:
        server: Server = request.getfixturevalue("_server_of")("mariadb")
        name = server.create_database()
        code = code.replace(DATABASE, f'host = "127.0.0.1", port = {server.port}, dbname = "{name}", user = "root"')
    run_r(code, cwd=tmp_path)


def test_there_are_examples_to_run() -> None:
    assert len(EXAMPLES) >= 5
    assert DATABASE in "".join(EXAMPLES)


def test_every_function_of_ours_is_on_the_page_or_documented_where_it_is() -> None:
    lines = REFERENCE.read_text().splitlines()
    public = {number for number, line in enumerate(lines) if re.match(r"sv_[a-z0-9]\w* <- function", line)}
    assert len(public) >= 11
    assert [lines[number] for number in public if not lines[number - 1].startswith("#")] == []


def test_sourcing_it_loads_nothing_and_defines_only_its_own_names() -> None:
    code = f"""
    loaded <- loadedNamespaces(); random <- exists(".Random.seed"); options <- options()
    source({quote(str(REFERENCE))})
    stopifnot(identical(loaded, loadedNamespaces()), identical(options, options()), random == exists(".Random.seed"))
    cat(setdiff(ls(all.names = TRUE), c("loaded", "random", "options")), sep = "\\n")
    """
    names = run_r(code).split("\n")
    assert len(names) > 20
    assert [name for name in names if not name.startswith("sv_")] == []


def test_every_function_that_it_calls_exists(shared_r: R) -> None:
    code = f"""
    data <- utils::getParseData(parse({quote(str(REFERENCE))}, keep.source = TRUE))
    data <- data[data$terminal, ]
    qualified <- which(data$token == "NS_GET") + 1L
    called <- setdiff(which(data$token == "SYMBOL_FUNCTION_CALL"), qualified)
    own <- data$text[data$token %in% c("SYMBOL", "SYMBOL_FORMALS")]
    known <- vapply(data$text[called], exists, NA, envir = globalenv(), mode = "function")
    stopifnot(sum(known) > 100)
    unique(setdiff(data$text[called][!known], own))
    """
    assert shared_r.ask(code) == ""


def test_it_is_ascii_so_that_any_locale_can_source_it() -> None:
    assert REFERENCE.read_text().isascii()
    with R(LANG="C", LC_ALL="C") as r:
        assert r.ask("is.function(sv_lock)") == "TRUE"


def test_its_lines_have_the_length_of_the_house() -> None:
    assert [line for line in REFERENCE.read_text().splitlines() if len(line) > 120] == []


@pytest.mark.parametrize(("wanted", "code"), [("no", 0), ("yes", 0), ("required", 0), ("perhaps", 1)])
def test_the_script_that_installs_r_is_content_where_all_is_there(shared_r: R, wanted: str, code: int) -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "install-r")],
        env={"PATH": "/usr/bin:/bin", "SHAREDVOL_TEST_R": wanted},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr == "" or wanted in ("no", "perhaps")


def test_without_r_its_tests_are_skipped_or_fail_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from support.r import rprocess

    monkeypatch.setattr(rprocess, "_missing", lambda: "no R here")
    monkeypatch.setenv("SHAREDVOL_TEST_R", "yes")
    with pytest.raises(pytest.skip.Exception, match="no R here"):
        run_r("1")
    monkeypatch.setenv("SHAREDVOL_TEST_R", "required")
    with pytest.raises(pytest.fail.Exception, match="no R here"):
        run_r("1")
