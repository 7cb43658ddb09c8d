"""The same bytes in, the same name out, in R as in Python; and what one builds the other parses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import has_permission_to_mount
from support.r.rprocess import R, in_hex, run_r

from sharedvol import container_path, log_path, parse_name, unique_path
from sharedvol.errors import IdentityError, InvalidNameError
from sharedvol.identity import sanitize
from sharedvol.paths import ParsedName, _with_tail

FRAGMENTS = [
    *("job", "a", "_", ".", "-", "/", " ", "\n", "é", "日本", "\udcff", "web_1", "web", "_web_1", "1", "A.b", "~"),
    *("_u5k2m9x0q7t1vz-1", "_20260131.log", "_20260230.log", ".json", ".gz", ".tar", ".log"),
    *("_h0123456789abcdef", "u0123456789abc-7"),
]
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=140) | st.binary(max_size=140).map(
    lambda raw: raw.replace(b"\0", b"x").decode("utf-8", "surrogateescape")
)
BUILT = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
MANY = settings(max_examples=40, deadline=None)


def vector(texts: list[str]) -> str:
    return f"c({', '.join(map(in_hex, texts))})"


def each(r: R, texts: list[str], function: str) -> list[str]:
    """What the R function says of each text, or the class of its error; in one line each, as its bytes."""
    code = f"""vapply({vector(texts)}, function(text) .to_hex(tryCatch(({function})(text),
        sv_error = function(e) paste0("!", class(e)[1]))), "")"""
    return [bytes.fromhex(line).decode("utf-8", "surrogateescape") for line in r.ask(code).split("\n")]


@MANY
@given(texts=st.lists(ANY | BUILT, min_size=1, max_size=40))
def test_a_name_is_made_safe_as_in_python(shared_r: R, texts: list[str]) -> None:
    def expected(text: str) -> str:
        try:
            return sanitize(text)
        except IdentityError:
            return "!sv_identity_error"

    assert each(shared_r, texts, "sv__sanitize") == [expected(text) for text in texts]


@MANY
@given(texts=st.lists(ANY | BUILT, min_size=1, max_size=40), tail=st.sampled_from(["_web", "_" + "x" * 120]))
def test_a_tail_is_put_where_python_puts_it(shared_r: R, texts: list[str], tail: str) -> None:
    def expected(text: str) -> str:
        try:
            return _with_tail(text, tail)
        except InvalidNameError:
            return "!sv_invalid_name"

    assert each(shared_r, texts, f"function(x) sv__with_tail(x, '{tail}')") == [expected(text) for text in texts]


@MANY
@given(
    texts=st.lists(ANY | BUILT, min_size=1, max_size=40),
    containers=st.none()
    | st.lists(st.sampled_from(["web", "web_1", "1", "a.b", "A.b_web", "é"]), max_size=3, unique=True),
)
def test_a_name_is_parsed_as_in_python(shared_r: R, texts: list[str], containers: list[str] | None) -> None:
    def expected(text: str) -> str:
        try:
            return shown(parse_name(text, containers=containers))
        except InvalidNameError:
            return "!sv_invalid_name"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTNAME", "web_1")
        shared_r.ask("Sys.setenv(HOSTNAME = 'web_1')")
        known = "NULL" if containers is None else vector(containers) if containers else "character()"
        function = f"""function(x) with(sv_parse_name(x, {known}), paste(form, name, container,
            if (is.null(date)) "None" else format(date, "%Y-%m-%d"), if (is.null(worker)) "None" else worker,
            if (is.null(count)) "None" else sprintf("%.0f", count), sep = "|"))"""
        assert each(shared_r, texts, function) == [expected(text) for text in texts]


def shown(parsed: ParsedName) -> str:
    parts = (parsed.form, parsed.name, parsed.container, parsed.date, parsed.worker, parsed.count)
    return "|".join(map(str, parts))


@pytest.mark.parametrize("host", ["3f9c0d1e2b4a", "my host", "größe", "x" * 80, "web_1", "_h0123456789abcdef"])
def test_both_build_and_parse_each_others_paths(host: str, monkeypatch: pytest.MonkeyPatch, shared_r: R) -> None:
    monkeypatch.setenv("HOSTNAME", host)
    shared_r.ask(f"Sys.setenv(HOSTNAME = {in_hex(host)})")
    assert shared_r.ask("sv_container_path('results', 'job_7.json.gz')") == str(
        container_path("results", "job_7.json.gz")
    )
    assert shared_r.ask("sv_log_path('logs/')") == str(log_path("logs"))
    theirs = parse_name(shared_r.ask("sv_unique_path('results', 'job_7.json.gz')"))
    assert (theirs.form, theirs.name) == ("unique", "job_7.json.gz")
    assert theirs.worker == shared_r.ask("sv_worker_token()")
    ours = unique_path("results", "job_7.json.gz")
    assert shared_r.ask(f"unlist(sv_parse_name({in_hex(str(ours))})[c('form', 'name', 'worker')])") == "\n".join(
        ["unique", "job_7.json.gz", str(parse_name(ours).worker)]
    )


@pytest.mark.parametrize("host", ["", " ", "default", "LOCALHOST", "\N{NO-BREAK SPACE}", "(none)\n", "unknown"])
def test_a_name_that_many_share_is_passed_over(host: str, shared_r: R) -> None:
    kernels = shared_r.ask("Sys.setenv(HOSTNAME = 'x'); sv__sanitize(sv__kernel_name())")
    assert shared_r.ask(f"Sys.setenv(HOSTNAME = {in_hex(host)}); sv_container_id()") == kernels


def test_there_is_no_constant_to_fall_back_to(r: R, tmp_path: Path) -> None:
    r.ask("sv__kernel_name <- function() 'localhost'; sv__mountinfo_name <- function() ''; Sys.unsetenv('HOSTNAME')")
    assert r.fails("sv_container_path('results', 'a')").classes[:2] == ["sv_identity_error", "sv_error"]


def test_the_kernels_host_name_is_asked_for_second() -> None:
    if not has_permission_to_mount():
        pytest.skip("a host name of our own takes CAP_SYS_ADMIN")
    with R(prefix=["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "r-host-1"], HOSTNAME="") as r:
        assert r.ask("sv_container_id()") == "r-host-1"


def test_the_container_id_is_found_among_the_mounts(shared_r: R, tmp_path: Path) -> None:
    container = "0123456789abcdef" * 4
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 2 8:1 /containers/{'f' * 64}/data /mnt rw - ext4 /dev/sda rw\n"
        f"1 2 8:1 /var/lib/docker/containers/{container}/hostname /etc/hostname rw - ext4 /dev/sda rw\n"
    )
    assert shared_r.ask(f"sv__mountinfo_name({in_hex(str(mounts))})") == container[:12]
    assert shared_r.ask(f"sv__mountinfo_name({in_hex(str(tmp_path / 'none'))})") == ""


def test_unique_paths_differ_though_the_seed_is_the_same() -> None:
    code = "set.seed(1); x <- sv_worker_token(); stopifnot(sv_unique_path('', 'a') != sv_unique_path('', 'a')); cat(x)"
    first, second = run_r(code), run_r(code)
    assert first != second
    assert len(first) == 13


def test_a_forked_child_renews_its_token(shared_r: R) -> None:
    code = """
    before <- sv_worker_token()
    children <- parallel::mclapply(1:4, function(i) {
      c(sv_worker_token(), sv_worker_token(), sv_parse_name(sv_unique_path("", "a"))$count)
    }, mc.cores = 2, mc.prescheduling = FALSE)
    children <- do.call(rbind, children)
    stopifnot(children[, 1] == children[, 2], children[, 3] == "1", before == sv_worker_token())
    c(before, children[, 1])
    """.replace("prescheduling", "preschedule")
    tokens = shared_r.ask(code).split("\n")
    assert len(set(tokens)) == len(tokens) == 5


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_locale_changes_no_name(locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "größe")
    with R(LANG=locale, LC_ALL=locale, HOSTNAME="größe") as r:
        assert r.ask("sv_container_path('', hex('c3a92e6a736f6e'))") == container_path("", "é.json").name
        r.ask("text <- hex('c3a92e6a736f6e'); Encoding(text) <- 'UTF-8'")
        assert r.ask("sv_container_path('', text)") == container_path("", "é.json").name
        r.ask("text <- hex('e92e6a736f6e'); Encoding(text) <- 'latin1'")
        assert r.ask("hex(.to_hex(sv_container_path('', text)))") == container_path("", "é.json").name
