"""Unique names in R's forms, and their parser."""

from __future__ import annotations

import datetime
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.processes import LIMIT, run_forked, run_python

from sharedvol import (
    IdentityError,
    InvalidNameError,
    ParsedName,
    container_path,
    identity,
    log_path,
    parse_name,
    unique_path,
    worker_token,
)
from sharedvol.identity import sanitize

HERE = "3f9c0d1e2b4a"
DAY = datetime.date(2026, 1, 31)
NOWHERE = "/nonexistent/below"


@pytest.fixture(autouse=True)
def hostname(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOSTNAME", HERE)
    return HERE


# What a caller may pass as a file name: any Unicode but "/", control characters and lone surrogates.
STEM = st.text(
    st.one_of(st.sampled_from("ab01_.-"), st.characters(exclude_characters="/", exclude_categories=("Cc", "Cs"))),
    min_size=1,
    max_size=20,
)
SUFFIX = st.sampled_from(["", ".json", ".log", ".json.gz", ".tar.gz", ".csv.zst", ".parquet", ".b.c", ".1", ".", "_"])
NAME = st.builds(str.__add__, STEM, SUFFIX).filter(lambda name: name not in (".", ".."))
PLAIN_CONTAINER = (
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}", fullmatch=True).map(sanitize).filter(lambda name: "_" not in name)
)
ANY_CONTAINER = st.one_of(
    st.text(min_size=1, max_size=30).map(sanitize),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True).map(sanitize),
    st.from_regex(r"([a-z]{1,3}_)?u[0-9a-z]{13}-[0-9]{1,3}", fullmatch=True).map(sanitize),
    st.sampled_from(["my_host", "api.example.com", "a_b.c_d", "x.json", "_", "20260131", "x_20260131"]),
)
DAYS = st.dates()


def test_rs_results_and_logs() -> None:
    assert str(container_path("results", "job_7.json")) == f"results/job_7_{HERE}.json"
    assert str(log_path("logs", date=DAY)) == f"logs/{HERE}_20260131.log"


def test_a_log_is_of_today_unless_told() -> None:
    before = datetime.date.today()
    path = log_path("logs")
    assert path in (log_path("logs", date=day) for day in (before, datetime.date.today()))


def test_a_log_of_an_early_year_has_eight_digits() -> None:
    assert log_path("logs", date=datetime.date(33, 4, 3)).name == f"{HERE}_00330403.log"


def test_another_container_can_be_named() -> None:
    assert container_path("d", "a.json", container="other") == Path("d/a_other.json")
    assert log_path("d", container="other", date=DAY) == Path("d/other_20260131.log")


def test_a_unique_path_is_container_worker_and_counter() -> None:
    name = unique_path("results", "job_42.json").name
    assert re.fullmatch(f"job_42_{HERE}_u{worker_token()}-[1-9][0-9]*\\.json", name)


def test_ten_thousand_unique_paths_without_a_disk() -> None:
    assert len({unique_path(NOWHERE, "a.json") for _ in range(10_000)}) == 10_000
    assert not os.path.exists("/nonexistent")


def test_threads_never_make_the_same_path() -> None:
    made: list[Path] = []
    barrier = threading.Barrier(16)

    def make() -> None:
        barrier.wait(LIMIT)
        made.extend(unique_path(NOWHERE, "a.json") for _ in range(500))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(made) == len(set(made)) == 8000


@pytest.mark.usefixtures("any_fork")
def test_forked_children_never_make_the_same_path() -> None:
    def make() -> list[Path]:
        return [unique_path(NOWHERE, "a.json") for _ in range(100)]

    made = make()
    for _ in range(5):
        made += run_forked(make)
    made += make()
    assert len(set(made)) == len(made) == 700


def test_processes_with_one_hostname_never_make_the_same_path() -> None:
    code = "import sharedvol\nfor _ in range(100): print(sharedvol.unique_path('d', 'a.json'))"
    made = [line for _ in range(3) for line in run_python(code, HOSTNAME="same").splitlines()]
    assert len(set(made)) == len(made) == 300


@given(NAME, PLAIN_CONTAINER)
@example("v1.2", "host")
@example(".bashrc", "host")
@example("data.tar.gz", "host")
def test_the_inverse_without_a_hint(name: str, container: str) -> None:
    built = container_path("d", name, container=container)
    assume(not re.fullmatch(r".+_[0-9]{8}\.log", built.name, re.DOTALL))  # has the log form as well
    assert parse_name(built) == ParsedName("container", name, container)


@given(NAME, ANY_CONTAINER)
@example("job.json", "my_host")
@example("job", "api.example.com")
@example("job.json.gz", "api.example.com")
@example("a.json", sanitize("x_u0123456789abc-5"))
def test_the_inverse_of_any_container_that_is_known(name: str, container: str) -> None:
    built = container_path("d", name, container=container)
    assume(built.name != f"{container}_{container}.log")  # a day's name for a container: both forms
    assert parse_name(built, containers=[container]) == ParsedName("container", name, container)


@given(NAME, ANY_CONTAINER)
def test_the_inverse_of_a_unique_path(name: str, container: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTNAME", container)
        assume(identity.container_id() == container)  # not one that is hashed again, or passed over
        built = unique_path("d", name)
        parsed = parse_name(built)
        following = parse_name(unique_path("d", name))
    assert (parsed.form, parsed.name, parsed.container) == ("unique", name, container)
    assert (parsed.worker, parsed.date) == (worker_token(), None)
    assert parsed == parse_name(built, containers=["x", container, "y"])
    assert parsed.count is not None
    assert following.count == parsed.count + 1


@given(ANY_CONTAINER, DAYS)
def test_the_inverse_of_a_log_path(container: str, day: datetime.date) -> None:
    built = log_path("logs", container=container, date=day)
    expected = ParsedName("log", built.name, container, date=day)
    assert parse_name(built, containers=[container]) == expected
    assert parse_name(built) == expected


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("a.json.gz", "a_host.json.gz"),
        ("a.tar.gz", "a_host.tar.gz"),
        ("v1.2", "v1.2_host"),
        (".bashrc", ".bashrc_host"),
        ("a.b.json", "a.b_host.json"),
        (".a.gz", ".a_host.gz"),
        ("a", "a_host"),
        ("straße.JSON", "straße_host.JSON"),
    ],
)
def test_where_the_suffix_begins(name: str, built: str) -> None:
    assert container_path("", name, container="host").name == built
    assert parse_name(built) == ParsedName("container", name, "host")


def test_known_names_are_tried_the_longest_first() -> None:
    assert parse_name("job_my_host.json", containers=["host", "my_host"]).container == "my_host"
    assert parse_name("job_my_host.json", containers=["host"]).name == "job_my.json"


def test_ones_own_name_needs_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "my_host")
    assert parse_name("job_my_host.json") == ParsedName("container", "job.json", "my_host")


def test_without_an_identity_names_are_still_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise IdentityError("no name")

    monkeypatch.setattr("sharedvol.paths.container_id", fail)
    assert parse_name("job_other.json").container == "other"
    with pytest.raises(IdentityError):
        unique_path("d", "a.json")


@pytest.mark.parametrize("name", ["", "job.json", "_x.json", "x_.json", "_", "nothing"])
def test_a_name_without_a_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="none of the forms"):
        parse_name(name)


def test_only_the_given_containers_are_believed() -> None:
    with pytest.raises(InvalidNameError):
        parse_name("job_other.json", containers=["host"])
    with pytest.raises(InvalidNameError):
        parse_name("other_20260131.log", containers=["host"])


def test_no_such_day_is_no_log() -> None:
    assert parse_name("x_20260231.log") == ParsedName("container", "x.log", "20260231")


@pytest.mark.parametrize("letter", ["x", "é", "語", "🦆"])
def test_255_bytes_are_the_limit(letter: str) -> None:
    room = 255 - len(f"_{HERE}.json")
    width = len(letter.encode())
    stem = letter * (room // width) + "x" * (room % width)
    longest = container_path("d", f"{stem}.json").name
    assert len(os.fsencode(longest)) == 255
    with pytest.raises(InvalidNameError, match=r"256 bytes .* 255 .* shorten it by 1$"):
        container_path("d", f"{stem}x.json")
    with pytest.raises(InvalidNameError, match=r"shorten it by \d+$"):
        unique_path("d", f"{stem}.json")


def test_the_longest_name_can_be_created(tmp_path: Path) -> None:
    stem = "x" * (255 - len(f"_{HERE}.json"))
    container_path(tmp_path, f"{stem}.json").touch()
    with pytest.raises(OSError, match="too long"):
        (tmp_path / f"{stem}x_{HERE}.json").touch()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", "../a", "a\0b", "a\nb", "\x7f", "a\ud800"])
def test_what_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        unique_path("d", name)
    with pytest.raises(InvalidNameError):
        container_path("d", name)


@pytest.mark.parametrize("container", ["", ".", "..", "a/b", "../a", "a\0b", "a\nb"])
def test_what_is_no_container_name_is_refused(container: str) -> None:
    with pytest.raises(InvalidNameError):
        container_path("d", "a.json", container=container)
    with pytest.raises(InvalidNameError):
        log_path("d", container=container)


@pytest.mark.parametrize("raw", ["../../etc/x", "a/b", "a\nb", "-rf", ".hid", "x" * 300, "ü", "..", "my_host"])
def test_a_hostile_hostname_stays_inside_the_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: str
) -> None:
    monkeypatch.setenv("HOSTNAME", raw)
    for path in (unique_path(tmp_path, "a.json"), container_path(tmp_path, "a.json"), log_path(tmp_path, date=DAY)):
        assert path.parent == tmp_path
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", path.name, re.ASCII)
        path.touch()
        assert parse_name(path).container == sanitize(raw)
    assert len(os.listdir(tmp_path)) == 3
