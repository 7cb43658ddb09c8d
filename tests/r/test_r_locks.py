"""R's lock holds what it says that it holds: each trap of R's filelock, with a real R."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from inotify_simple import INotify, flags
from support.processes import blocked, is_free, wait_blocked, wait_until
from support.r.rprocess import REFERENCE, R, in_hex

from sharedvol import FileLock, LockTimeout

TIMEOUT = ["sv_lock_timeout", "sv_error", "error", "condition"]
ERROR = ["sv_lock_error", "sv_error", "error", "condition"]
LOST = ["sv_lock_lost", "sv_lock_error", "sv_error", "error", "condition"]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """The lock file; the R processes' working directory is its own."""
    return tmp_path / "x.lock"


def test_python_and_r_exclude_each_other(r: R, lock: Path) -> None:
    r.ask("l <- sv_lock('x.lock')")
    assert r.ask("c(sv_held(l), l$path)") == f"TRUE\n{lock}"
    with pytest.raises(LockTimeout):
        FileLock(lock, timeout=0).acquire()
    assert r.ask("sv_unlock(l); sv_held(l)") == "FALSE"
    with FileLock(lock, timeout=0):
        assert r.fails("sv_lock('x.lock', timeout = 0)").classes == TIMEOUT
        assert r.fails("sv_lock('x.lock', timeout = 0.01)").classes == TIMEOUT
    r.ask("sv_unlock(sv_lock('x.lock', timeout = 0))")


def test_r_waits_in_the_kernel_and_gets_it(r: R, lock: Path) -> None:
    with FileLock(lock):
        r.tell("l <- sv_lock('x.lock'); sv_held(l)")
        wait_blocked(lock)
    assert r.answer() == "TRUE"


def test_shared_holders_hold_together(start_r: Callable[[], R], lock: Path) -> None:
    first, second = start_r(), start_r()
    for r in (first, second):
        r.ask("l <- sv_lock('x.lock', shared = TRUE)")
    assert is_free(lock, shared=True)
    assert not is_free(lock)
    assert first.ask("sv_unlock(l); sv_held(l)") == "FALSE"
    assert not is_free(lock)


def test_a_killed_holder_has_nothing(r: R, lock: Path) -> None:
    r.ask("sv_lock('x.lock', fenced = TRUE)$path")
    r.kill()
    assert is_free(lock)


def test_the_file_is_never_seen_with_another_mode(r: R, tmp_path: Path, lock: Path) -> None:
    r.ask("Sys.umask('077')")
    with INotify() as watch:
        watch.add_watch(tmp_path, flags.CREATE | flags.ATTRIB)
        r.ask("sv_unlock(sv_lock('x.lock'))")
        seen = [flags.from_mask(event.mask) for event in watch.read(timeout=0) if event.name == lock.name]
    assert seen == [[flags.CREATE]]  # and no change of its mode after that
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    assert os.listdir(tmp_path) == [lock.name]


def test_no_file_has_a_wider_mode_before_its_final_one(r: R, tmp_path: Path, lock: Path) -> None:
    code = """
    Sys.umask('0'); seen <- character()
    Sys.chmod <- function(paths, ...) { seen <<- c(seen, format(file.info(paths)$mode)); base::Sys.chmod(paths, ...) }
    sv_unlock(sv_lock('x.lock', mode = '0600', fenced = TRUE))
    sv_purge_cache('cache', '1')
    unique(seen)
    """
    assert r.ask(code) == "600"
    assert r.ask("format(Sys.umask(NA))") == "0"  # the umask is as it was
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("x.*")} == {0o600}
    assert stat.S_IMODE((tmp_path / "cache" / "version").stat().st_mode) == 0o644


def test_the_mode_can_be_chosen(r: R, lock: Path) -> None:
    r.ask("sv_unlock(sv_lock('x.lock', mode = '0660'))")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o660


def test_a_file_that_filelock_alone_made_is_opened_to_all(r: R, lock: Path) -> None:
    r.ask("invisible(filelock::unlock(filelock::lock('x.lock')))")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    r.ask("sv_unlock(sv_lock('x.lock'))")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_a_private_file_with_content_is_left_as_it_is(r: R, lock: Path) -> None:
    lock.write_text("a secret")
    lock.chmod(0o600)
    r.ask("sv_unlock(sv_lock('x.lock'))")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_what_is_no_lock_file_is_refused(r: R, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "directory").mkdir()
    for path in ("link", "directory", "missing/x.lock", "", ".", ".."):
        assert r.fails(f"sv_lock('{path}')").classes == ERROR
    assert r.fails("sv_lock(c('a', 'b'))").classes == ERROR
    assert sorted(os.listdir(tmp_path)) == ["directory", "link", "target"]


@pytest.mark.parametrize("wrong", ["timeout = -1", "timeout = NA", "shared = NA", "fenced = 1", "purpose = NULL"])
def test_a_wrong_argument_is_an_error_and_locks_nothing(r: R, lock: Path, wrong: str) -> None:
    assert r.fails(f"sv_lock('x.lock', {wrong})").classes == ERROR
    assert not lock.exists()


def test_the_process_that_holds_it_holds_it_until_each_is_given_back(r: R, lock: Path) -> None:
    r.ask("outer <- sv_lock('x.lock'); inner <- sv_lock(file.path(getwd(), 'x.lock'), timeout = 0)")
    assert r.descriptors(lock) == 1
    assert r.ask("sv_unlock(inner); c(sv_held(inner), sv_held(outer))") == "FALSE\nTRUE"
    assert r.fails("sv_unlock(inner)").classes == ERROR
    assert not is_free(lock)
    assert r.fails("sv_lock('x.lock', shared = TRUE)").classes == ERROR
    assert r.ask("sv_held(outer)") == "TRUE"
    r.ask("sv_unlock(outer)")
    assert is_free(lock)


def test_sourcing_the_file_again_drops_nothing(r: R, lock: Path) -> None:
    r.ask(f"l <- sv_lock('x.lock'); source({in_hex(str(REFERENCE))})")
    assert r.ask("sv_held(l)") == "TRUE"
    assert r.ask("sv_unlock(sv_lock('x.lock', timeout = 0)); sv_held(l)") == "TRUE"
    assert not is_free(lock)


def test_a_later_setwd_changes_nothing(r: R, lock: Path) -> None:
    assert r.ask("l <- sv_lock('x.lock'); dir.create('d'); setwd('d'); sv_held(l)") == "TRUE"
    r.ask("sv_unlock(l)")
    assert is_free(lock)


def test_with_lock_gives_back_whatever_happens(r: R, lock: Path) -> None:
    assert r.ask("sv_with_lock('x.lock', { held <- names(sv__state$holds); 7 }, timeout = 0)") == "7"
    assert r.ask("held") == str(lock)
    assert is_free(lock)
    assert r.fails("sv_with_lock('x.lock', stop('mine'))").args == ("mine",)
    assert is_free(lock)
    assert r.ask("(function() { sv_with_lock('x.lock', return(8)); 9 })()") == "8"
    assert is_free(lock)
    assert r.ask("withVisible(sv_with_lock('x.lock', invisible(3)))$visible") == "FALSE"


# Trap: closing any descriptor of the lock file drops the lock.


OPEN = ["readLines('x.lock')", "file.copy('x.lock', 'y', overwrite = TRUE)", "cat('', file = 'x.lock', append = TRUE)"]


@pytest.mark.parametrize("how", OPEN)
def test_a_lock_that_was_dropped_by_opening_the_file_is_told(r: R, lock: Path, how: str) -> None:
    r.ask(f"l <- sv_lock('x.lock'); {how}")
    assert is_free(lock)
    assert r.ask("sv_held(l)") == "FALSE"
    assert r.fails("sv_lock('x.lock')").classes == LOST  # not a second hold on nothing
    assert r.fails("sv_unlock(l)").classes == LOST
    assert r.fails(f"sv_with_lock('x.lock', {how})").classes == LOST
    assert r.fails(f"sv_with_lock('x.lock', {{ {how}; stop('mine') }})").args == ("mine",)
    assert r.ask("sv_with_lock('x.lock', 1, timeout = 0)") == "1"


def test_nothing_of_ours_drops_the_lock(r: R, lock: Path) -> None:
    r.ask("l <- sv_lock('x.lock', fenced = TRUE)")
    for code in (
        "sv_held(l)",
        "sv_unlock(sv_lock('x.lock'))",
        "sv_unlock(sv_lock('x.lock', fenced = TRUE, purpose = 'again'))",
        "sv_with_lock('other.lock', 1)",
        "sv_with_lock('x.lock', try(sv_lock('x.lock', shared = TRUE), silent = TRUE))",
        "sv_publish('y', 'text')",
        "try(sv_publish('x.lock', 'text'), silent = TRUE)",
    ):
        r.ask(code)
        assert r.ask("sv_held(l)") == "TRUE"
        assert not is_free(lock)


# Trap: a forked child believes to hold what its parent holds.


def test_a_forked_child_holds_nothing_and_takes_nothing(r: R, lock: Path) -> None:
    code = """
    l <- sv_lock('x.lock', fenced = TRUE)
    said <- parallel::mclapply(1:2, function(i) {
      first <- c(sv_held(l), sv_unlock(l))
      again <- tryCatch(sv_lock('x.lock', timeout = 0), sv_lock_timeout = function(e) 'not mine')
      gc()
      c(first, again, sv_held(l))
    }, mc.cores = 2)
    unique(unlist(said))
    """
    assert r.ask(code) == "FALSE\nnot mine"
    assert r.ask("sv_held(l)") == "TRUE"
    assert not is_free(lock)
    r.ask("sv_unlock(l)")
    assert is_free(lock)


def test_children_wait_for_their_parent_and_for_each_other(r: R, tmp_path: Path, lock: Path) -> None:
    (tmp_path / "count").write_text("0\n")
    code = """
    l <- sv_lock('x.lock')
    jobs <- lapply(1:3, function(i) parallel::mcparallel({
      for (turn in 1:40) sv_with_lock('x.lock', writeLines(as.character(as.integer(readLines('count')) + 1L), 'count'))
    }))
    """
    r.ask(code)
    wait_blocked(lock, 3)
    assert r.ask("sv_held(l)") == "TRUE"
    assert r.ask("sv_unlock(l); unlist(lapply(parallel::mccollect(jobs), class))") == "\n".join(["NULL"] * 3)
    assert (tmp_path / "count").read_text() == "120\n"


def test_a_childs_lock_is_its_own(r: R, lock: Path) -> None:
    code = """
    job <- parallel::mcparallel({ l <- sv_lock('x.lock'); while (!file.exists('go')) Sys.sleep(0.01); sv_held(l) })
    """
    r.ask(code)
    wait_until(lambda: lock.exists() and not is_free(lock), "the child's lock")
    assert r.fails("sv_lock('x.lock', timeout = 0)").classes == TIMEOUT
    assert r.ask("invisible(file.create('go')); unlist(parallel::mccollect(job))") == "TRUE"
    wait_until(lambda: is_free(lock), "the child's end")


# Trap: filelock leaks a descriptor with each try that ends without the lock.


def test_a_try_that_fails_leaves_no_descriptor(r: R, lock: Path) -> None:
    r.ask("other <- sv_lock('other.lock')")
    with FileLock(lock):
        before = len(os.listdir(f"/proc/{r.pid}/fd"))
        for timeout in ("0", "0.001"):
            code = f"for (i in 1:5) tryCatch(sv_lock('x.lock', timeout = {timeout}), sv_lock_timeout = function(e) i)"
            r.ask(code)
            assert r.descriptors(lock) == 0
        assert len(os.listdir(f"/proc/{r.pid}/fd")) == before
    assert r.ask("sv_held(other)") == "TRUE"
    r.ask("l <- sv_lock('x.lock')")
    assert not is_free(lock)


def test_a_connection_that_r_closes_meanwhile_does_not_confuse_the_descriptors(r: R, lock: Path) -> None:
    code = """
    # As a garbage collection does it within filelock::lock().
    sv__wait <- function(...) { sv__wait <<- real; close(forgotten); real(...) }
    forgotten <- file('/dev/null', 'r')
    """
    with FileLock(lock):
        r.ask(f"real <- sv__wait\n{code}")
        assert r.fails("sv_lock('x.lock', timeout = 0)").classes == TIMEOUT
        assert r.descriptors(lock) == 0  # the number of the forgotten one was its number
    r.ask(code)
    r.ask("l <- sv_lock('x.lock', timeout = 0)")
    assert not is_free(lock)


def test_what_a_saved_workspace_says_is_another_process_s(r: R, lock: Path) -> None:
    # A container's processes have small ids, the same ones after each restart.
    r.ask("real <- sv__process; sv__process <- function() sub(' .*', ' 1', real()) # the same id, another time")
    r.ask("l <- sv_lock('x.lock'); token <- sv_worker_token()")
    r.ask("restored <- unserialize(serialize(list(sv__state, l), NULL)); sv_unlock(l)")
    r.ask("sv__process <- real; sv__state <- restored[[1]]")
    assert r.ask("c(sv_held(restored[[2]]), sv_unlock(restored[[2]]))") == "FALSE\nFALSE"
    assert r.ask("sv_worker_token() == token") == "FALSE"
    r.ask("l <- sv_lock('x.lock', timeout = 0)")
    assert not is_free(lock)


def test_an_interrupted_wait_leaves_nothing(r: R, lock: Path) -> None:
    with FileLock(lock):
        r.tell("tryCatch({ l <- sv_lock('x.lock'); 'locked' }, interrupt = function(e) 'interrupted')")
        wait_blocked(lock)
        os.kill(r.pid, signal.SIGINT)
        assert r.answer() == "interrupted"
        assert r.descriptors(lock) == 0
        assert blocked(lock) == 0
    assert is_free(lock)
    r.ask("l <- sv_lock('x.lock')")
    assert not is_free(lock)


def test_a_wait_that_a_signal_ends_early_goes_on(r: R) -> None:
    r.ask("real <- sv__wait; calls <- 0; sv__wait <- function(...) { calls <<- calls + 1; if (calls > 3) real(...) }")
    assert r.ask("l <- sv_lock('x.lock', timeout = 60); c(sv_held(l), calls)") == "1\n4"
    r.ask("sv_unlock(l); calls <- 0")
    assert r.fails("sv_lock('x.lock', timeout = 0)").classes == TIMEOUT


def test_a_timeout_may_be_longer_than_filelock_can_count(r: R, lock: Path) -> None:
    with FileLock(lock):
        r.tell("sv_held(sv_lock('x.lock', timeout = 1e8))")
        wait_blocked(lock)
    assert r.answer() == "TRUE"


# Trap: filelock believes its own list.


def test_a_lock_of_the_same_process_by_other_means_is_no_second_lock(r: R, lock: Path) -> None:
    r.ask("theirs <- filelock::lock('x.lock')")
    assert r.fails("sv_lock('x.lock', timeout = 0)").classes == ERROR
    assert not is_free(lock)
    r.ask("invisible(filelock::unlock(theirs))")
    assert is_free(lock)
    assert r.ask("sv_with_lock('x.lock', 5, timeout = 0)") == "5"


def test_an_inherited_lock_of_other_means_is_no_lock(r: R, lock: Path) -> None:
    code = """
    theirs <- filelock::lock('x.lock')
    said <- parallel::mclapply(1:2, function(i) {
      class(tryCatch(sv_lock('x.lock', timeout = 0), sv_error = identity))[1]
    }, mc.cores = 2)
    unique(unlist(said))
    """
    assert r.ask(code) == "sv_lock_error"
    assert not is_free(lock)


def test_another_name_of_a_lock_that_is_held_is_no_second_lock(r: R, lock: Path) -> None:
    r.ask("l <- sv_lock('x.lock')")
    os.link(lock, lock.with_name("y.lock"))
    assert r.fails("sv_lock('y.lock', timeout = 0)").classes == ERROR
    assert r.ask("sv_held(l)") == "FALSE"  # the kernel's rule; it is told, at least
    assert r.fails("sv_unlock(l)").classes == LOST
    assert r.ask("sv_with_lock('y.lock', 1, timeout = 0)") == "1"


# Trap: a lock file that is deleted is a lock that nobody else asks for.


def test_a_file_that_was_deleted_while_one_waited_is_not_taken_for_the_lock(r: R, lock: Path) -> None:
    with FileLock(lock):
        r.tell("l <- sv_lock('x.lock', timeout = 60); sv_held(l)")
        wait_blocked(lock)
        lock.unlink()
        lock.touch()
        old = FileLock(lock)  # of the new file
        with old:
            pass
    assert r.answer() == "TRUE"
    assert not is_free(lock)
    assert r.descriptors(lock) == 1


def test_a_file_that_was_deleted_while_it_was_held_is_told(r: R, lock: Path) -> None:
    for harm in (lock.unlink, lambda: lock.rename(lock.with_name("moved")), lambda: os.replace(new_file(lock), lock)):
        r.ask("l <- sv_lock('x.lock', timeout = 0)")
        harm()
        assert r.ask("sv_held(l)") == "FALSE"
        assert r.fails("sv_unlock(l)").classes == LOST
        assert r.descriptors(lock) == 0


def new_file(lock: Path) -> Path:
    new = lock.with_name("new")
    new.touch()
    return new


# Trap: names and locales.


def test_a_name_that_filelock_would_change_is_refused(tmp_path: Path) -> None:
    with R(tmp_path, LANG="C", LC_ALL="C") as r:
        assert r.fails("sv_lock(hex('c3a92e6c6f636b'))").classes == ERROR
        assert list(tmp_path.iterdir()) == []
        assert r.ask("sv_with_lock('x.lock', 1)") == "1"


def test_an_unusual_name_is_locked_as_it_is(r: R, tmp_path: Path) -> None:
    names = ["é.lock", "a b.lock", "[ab]*.lock", "-x.lock", "a'b\"c$d.lock", "~.lock"]
    for name in names:
        r.ask(f"l <- sv_lock({in_hex(f'./{name}')}, fenced = TRUE)")
        assert not is_free(tmp_path / name)
        r.ask("sv_unlock(l)")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}{end}" for name in names for end in ENDS}


ENDS = ("", ".token", ".holder")
