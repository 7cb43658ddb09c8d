"""A cache of another version is emptied once among all replicas, and nothing else ever is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import wait_until
from support.r.rprocess import R, in_hex

REFUSED = ["sv_cache_error", "sv_error", "error", "condition"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with entries of version 1."""
    made = tmp_path / "cache"
    (made / "entries" / "deep" / ".hidden").mkdir(parents=True)
    (made / "entries" / "a").write_text("1")
    (made / "entries" / "deep" / ".hidden" / "*").write_text("1")
    (made / "version").write_text("1\n")
    (made / "other").write_text("not an entry")
    return made


def test_another_version_empties_it_and_the_same_does_not(r: R, cache: Path) -> None:
    assert r.ask("sv_purge_cache('cache', '1')") == "FALSE"
    assert sorted(os.listdir(cache / "entries")) == ["a", "deep"]
    assert r.ask("sv_purge_cache('cache', hex('32c3a9'))") == "TRUE"
    assert (cache / "version").read_text() == "2é\n"
    assert os.listdir(cache / "entries") == []
    assert r.ask("sv_purge_cache('cache', hex('32c3a9'))") == "FALSE"
    assert sorted(os.listdir(cache)) == ["entries", "other", "version", "version.lock"]


def test_of_many_replicas_one_empties_it(start_r: Callable[[], R], cache: Path) -> None:
    processes = [start_r() for _ in range(2)]
    code = """
    jobs <- lapply(1:3, function(i) {
      parallel::mcparallel({ while (!file.exists('go')) Sys.sleep(0.001); sv_purge_cache('cache', '2') })
    })
    sum(unlist(parallel::mccollect(jobs)))
    """
    for process in processes:
        process.tell(code)
    (cache.parent / "go").touch()
    assert sum(int(process.answer()) for process in processes) == 1
    assert os.listdir(cache / "entries") == []


def test_a_killed_purger_is_replaced(r: R, start_r: Callable[[], R], cache: Path) -> None:
    r.ask("real <- sv__empty; sv__empty <- function(...) { real(...); file.create('emptied'); Sys.sleep(600) }")
    r.tell("sv_purge_cache('cache', '2')")
    wait_until((cache.parent / "emptied").exists, "the purge")
    r.kill()
    assert (cache / "version").read_text() == "1\n"  # it is written last
    (cache / ".left.sharedvol-tmp").touch()
    assert start_r().ask("sv_purge_cache('cache', '2')") == "TRUE"
    assert (cache / "version").read_text() == "2\n"
    assert not (cache / ".left.sharedvol-tmp").exists()


def test_a_new_directory_becomes_a_cache(r: R, tmp_path: Path) -> None:
    assert r.ask("sv_purge_cache('new', '1')") == "TRUE"
    assert (tmp_path / "new" / "version").read_text() == "1\n"
    assert r.ask("sv_purge_cache('new', '1')") == "FALSE"
    assert r.fails("sv_purge_cache('missing/new', '1')").classes == REFUSED


def test_what_is_no_cache_is_refused_and_left_as_it_is(r: R, cache: Path) -> None:
    (cache / "version").unlink()
    assert r.fails("sv_purge_cache('cache', '2')").classes == REFUSED
    assert sorted(os.listdir(cache)) == ["entries", "other"]
    assert (cache / "entries" / "a").read_text() == "1"


def test_symbolic_links_are_never_followed(r: R, cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_text("not ours")
    (cache / "entries" / "link").symlink_to(elsewhere)
    assert r.ask("sv_purge_cache('cache', '2')") == "TRUE"
    (cache / "entries").rmdir()
    (cache / "entries").symlink_to(elsewhere)
    assert r.fails("sv_purge_cache('cache', '3')").classes == REFUSED
    (cache / "version").unlink()
    (cache / "version").symlink_to(elsewhere / "x")
    assert r.fails("sv_purge_cache('cache', '3')").classes == REFUSED
    assert (elsewhere / "x").read_text() == "not ours"


@pytest.mark.parametrize("version", ["", " 1", "1 ", "1\n2", "x" * 201])
def test_a_version_that_is_no_line_of_text_is_refused(r: R, cache: Path, version: str) -> None:
    assert r.fails(f"sv_purge_cache('cache', {in_hex(version)})").classes == REFUSED
    assert (cache / "version").read_text() == "1\n"


def test_a_version_that_is_a_pipe_is_refused_without_a_wait(r: R, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.mkfifo(tmp_path / "cache" / "version")
    assert r.fails("sv_purge_cache('cache', '1')").classes == REFUSED
