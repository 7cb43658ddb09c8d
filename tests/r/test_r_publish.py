"""What R publishes appears whole, once, and for the sidecar to collect; what it does not leaves nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import LIMIT, has_permission_to_mount, wait_until
from support.r.rprocess import R, in_hex

from sharedvol import AlreadyPublishedError, publish, remove_stale_temporaries
from sharedvol.publishing.mark import is_marked

TAKEN = ["sv_already_published", "sv_publish_error", "sv_error", "error", "condition"]
FAILED = ["sv_publish_error", "sv_error", "error", "condition"]


def test_content_is_written_as_given(r: R, tmp_path: Path) -> None:
    assert r.ask("sv_publish('text', c('a', hex('c3a9'), ''))") == "text"
    assert (tmp_path / "text").read_bytes() == "a\né\n\n".encode()
    r.ask("sv_publish('bytes', as.raw(c(0, 255, 10)))")
    assert (tmp_path / "bytes").read_bytes() == b"\0\xff\n"
    r.ask("sv_publish('none', character())")
    assert (tmp_path / "none").read_bytes() == b""
    r.ask("sv_publish('object.rds', function(path) saveRDS(1:3, path))")
    assert r.ask("readRDS('object.rds')") == "1\n2\n3"
    assert sorted(os.listdir(tmp_path)) == ["bytes", "none", "object.rds", "text"]


def test_text_and_names_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    with R(tmp_path, LANG="C", LC_ALL="C") as r:
        r.ask("unmarked <- marked <- hex('c3a9'); Encoding(marked) <- 'UTF-8'")
        r.ask("one <- hex('e9'); Encoding(one) <- 'latin1'")
        r.ask("sv_publish(marked, c(unmarked, marked, one))")
        assert r.fails("sv_publish(one, 'again')").classes == TAKEN
    assert os.listdir(tmp_path) == ["é"]
    assert (tmp_path / "é").read_text(encoding="utf-8") == "é\né\né\n"


def test_nothing_is_ever_overwritten(r: R, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("first")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("x", "dangling"):
        assert r.fails(f"sv_publish('{name}', 'second')").classes == TAKEN
    late = "function(path) { writeLines('second', path); writeLines('first', 'late') }"
    assert r.fails(f"sv_publish('late', {late})").classes == TAKEN  # taken while it was written
    assert (tmp_path / "x").read_text() == "first"
    assert (tmp_path / "late").read_text() == "first\n"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "late", "x"]


def test_it_can_be_replaced_at_once(r: R, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("first")
    r.ask("sv_publish('x', 'second', replace = TRUE)")
    assert (tmp_path / "x").read_text() == "second\n"
    assert os.listdir(tmp_path) == ["x"]


def test_only_files_are_replaced(r: R, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("empty")
    for name in ("fifo", "directory"):
        failure = r.fails(f"sv_publish('{name}', 'x', replace = TRUE)")
        assert failure.classes == FAILED
        assert "only files are replaced" in str(failure)
    late = "function(path) { writeLines('x', path); system2('mkfifo', 'late') }"
    assert r.fails(f"sv_publish('late', {late}, replace = TRUE)").classes == FAILED
    for name in ("empty", "link"):
        r.ask(f"sv_publish('{name}', '{name}', replace = TRUE)")
        assert (tmp_path / name).read_text() == f"{name}\n"
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert stat.S_ISFIFO((tmp_path / "late").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["directory", "empty", "fifo", "late", "link"]


def test_what_is_not_a_file_is_not_published(r: R, tmp_path: Path) -> None:
    failure = r.fails("sv_publish('x', function(path) system2('mkfifo', shQuote(path)))")
    assert failure.classes == FAILED
    assert "made no file" in str(failure)
    assert os.listdir(tmp_path) == []


def test_of_many_publishers_in_both_languages_one_wins_each_name(start_r: Callable[[], R], tmp_path: Path) -> None:
    names = [f"race{number}" for number in range(60)]
    code = """
    while (!file.exists('go')) Sys.sleep(0.001)
    one <- function(n) tryCatch({ sv_publish(paste0('race', n), 'r'); 1 }, sv_already_published = function(e) 0)
    sum(vapply(0:59, one, 0))
    """
    process = start_r()
    process.ask("1")
    process.tell(code)
    (tmp_path / "go").touch()
    ours = 0
    for name in names:
        try:
            with publish(tmp_path / name) as file:
                file.write("python")
            ours += 1
        except AlreadyPublishedError:
            pass
    assert ours + int(process.answer()) == len(names)
    assert {(tmp_path / name).read_text() for name in names} <= {"r\n", "python"}
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "go"])


def test_the_file_is_not_there_before_it_is_whole(r: R, tmp_path: Path) -> None:
    code = """
    seen <- NULL
    sv_publish('x', function(path) { writeLines('half', path); seen <<- list.files('.'); writeLines('whole', path) })
    length(seen)
    """
    assert r.ask(code) == "0"
    assert (tmp_path / "x").read_text() == "whole\n"


def test_published_files_carry_the_mark(r: R, tmp_path: Path) -> None:
    r.ask("sv_publish('x', 'text'); sv_publish('y', 'text', replace = TRUE)")
    r.ask("for (n in 1:20) sv_publish(paste0('file', n), as.raw(rep(n, 1000 * n)))")
    for path in tmp_path.iterdir():
        info = path.stat()
        assert is_marked(info.st_mtime_ns, info.st_size), path.name
        assert abs(info.st_ctime_ns - info.st_mtime_ns) < 60 * 10**9


@pytest.mark.parametrize("written", ["1700000000.5", "1700000000.000001", "1764547200.25", "4102444800.1", "0.5"])
def test_a_mark_moves_the_time_by_two_seconds_at_most_and_keeps_the_day(r: R, written: str) -> None:
    times = r.ask(f"sprintf('%.9f', as.numeric(sv__marked_time({written}, c(0, 1, 1e6, 5e9))))").split()
    assert len(times) == 4
    for time, size in zip(times, (0, 1, 10**6, 5 * 10**9), strict=True):
        at = int(time.replace(".", ""))
        assert is_marked(at, size)
        assert -1 < float(written) - at / 1e9 <= 2
        assert at // (86_400 * 10**9) == float(written) // 86_400


def test_the_sidecar_collects_it_and_never_the_temporary(r: R, tmp_path: Path) -> None:
    results = tmp_path / "spool" / "results"
    results.mkdir(parents=True)
    (tmp_path / "collected").mkdir()
    r.tell(
        """sv_publish('spool/results/job_1_web1.json', function(path) {
             writeLines('{}', path)
             file.create('written')
             while (!file.exists('go')) Sys.sleep(0.01)
           })"""
    )
    wait_until((tmp_path / "written").exists, "the temporary")
    (temporary,) = os.listdir(results)
    collect(tmp_path)
    assert os.listdir(results) == [temporary]
    (tmp_path / "go").touch()
    r.answer()
    collect(tmp_path)
    assert os.listdir(results) == []
    assert [path.name for path in (tmp_path / "collected").rglob("*.json")] == ["job_1_web1.json"]


def collect(directory: Path) -> None:
    """What is finished; with this quiet time a file must be so by its change time, or it is waited for in vain."""
    command = [str(Path(sys.executable).parent / "sharedvol-sidecar"), "once", "--quiet", "600"]
    places = ["--from", str(directory / "spool"), "--to", str(directory / "collected")]
    done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cleaner_leaves_the_temporary_alone(r: R, tmp_path: Path) -> None:
    r.tell("""sv_publish('x', function(path) {
      writeLines('text', path); file.create('written'); while (!file.exists('go')) Sys.sleep(0.01)
    })""")
    wait_until((tmp_path / "written").exists, "the temporary")
    assert remove_stale_temporaries(tmp_path) == []
    (tmp_path / "go").touch()
    r.answer()
    assert (tmp_path / "x").read_text() == "text\n"


def test_a_failed_writer_leaves_nothing(r: R, tmp_path: Path) -> None:
    assert r.fails("sv_publish('x', function(path) { writeLines('half', path); stop('mine') })").args == ("mine",)
    for write in (
        "function(path) NULL",
        "function(path) dir.create(path)",
        "function(path) file.symlink('/etc/hostname', path)",
        "function(path) { kept <<- file(path, 'w'); cat('half', file = kept) }",
        "7",
        "NA_character_",
    ):
        assert r.fails(f"sv_publish('x', {write})").classes == FAILED, write
        assert os.listdir(tmp_path) == [], write


def test_a_killed_writer_leaves_no_name(r: R, tmp_path: Path) -> None:
    r.tell("sv_publish('x', function(path) { writeLines('half', path); file.create('written'); Sys.sleep(600) })")
    wait_until((tmp_path / "written").exists, "the temporary")
    r.kill()
    (temporary,) = set(os.listdir(tmp_path)) - {"written"}
    assert temporary.startswith(".")
    assert temporary.endswith(".sharedvol-tmp-r")


@pytest.mark.parametrize("name", ["", ".", "..", "a/", ".x.sharedvol-tmp", ".x.sharedvol-tmp-r"])
def test_what_names_no_file_is_refused(r: R, tmp_path: Path, name: str) -> None:
    assert r.fails(f"sv_publish('{name}', 'text')").classes[:2] == ["sv_invalid_name", "sv_error"]
    assert os.listdir(tmp_path) == []


def test_a_missing_directory_is_told(r: R, tmp_path: Path) -> None:
    error = r.fails("sv_publish('missing/x', 'text')")
    assert error.classes == FAILED
    assert "'missing/x'" in str(error)
    r.ask("sv__sync <- function(...) stop('sync failed')")
    assert r.fails("sv_publish('x', 'text')").classes == FAILED
    assert os.listdir(tmp_path) == []


def test_the_file_is_synced_before_it_has_its_name_and_its_directory_after(r: R) -> None:
    code = """
    said <- NULL
    real <- sv__sync
    sv__sync <- function(path) {
      said <<- c(said, paste(basename(path) == basename(getwd()), file.exists('x')))
      real(path)
    }
    sv_publish('x', 'text')
    said
    """
    assert r.ask(code) == "FALSE FALSE\nTRUE TRUE"


def test_a_full_disk_is_told(r: R, tmp_path: Path) -> None:
    if not has_permission_to_mount():
        pytest.skip("a small file system takes CAP_SYS_ADMIN")
    small = tmp_path / "small"
    small.mkdir()
    prefix = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@"', str(small)]
    with R(tmp_path, prefix=prefix) as inside:
        assert inside.fails("sv_publish('small/x', raw(1e6))").classes == FAILED
        assert inside.ask("length(list.files('small', all.files = TRUE, no.. = TRUE))") == "0"
        # R says nothing of these.
        cat = "cat(strrep('x', 1e6), file = path)"
        gzip = "{ file <- gzfile(path, 'w', compression = 0); write.csv(runif(1e5), file); close(file) }"
        for cut_off in (cat, gzip):
            assert inside.fails(f"sv_publish('small/x', function(path) {cut_off})").classes == FAILED
        assert inside.ask("length(list.files('small', all.files = TRUE, no.. = TRUE))") == "0"
        assert inside.ask("sv_publish('small/x', raw(1e3)); file.size('small/x')") == "1000"
        assert inside.ask("sv_publish('small/y', function(path) cat('y', file = path)); list.files('small')") == "x\ny"


def test_unusual_names_and_directories_are_left_as_they_are(r: R, tmp_path: Path) -> None:
    (tmp_path / "[a]* é").mkdir()
    (tmp_path / "a é").mkdir()
    (tmp_path / "a é" / ".keep").touch()
    for name in ("[a]* é/x'y\"$z.json", "~x", "-n"):
        r.ask(f"sv_publish({in_hex(name if name != '~x' else './~x')}, 'text')")
        assert (tmp_path / name).read_text() == "text\n"
    assert os.listdir(tmp_path / "a é") == [".keep"]
    assert len(os.listdir(tmp_path / "[a]* é")) == 1


def test_the_umask_says_who_may_read_it(r: R, tmp_path: Path) -> None:
    r.ask("Sys.umask('027'); sv_publish('x', 'text')")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
