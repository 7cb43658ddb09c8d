"""R's fencing tokens only ever grow, in the file that all languages share; and its holder says who it is."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import is_free
from support.r.rprocess import R

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
TAKE = "l <- sv_lock('x.lock', fenced = TRUE); t <- l$token; sv_unlock(l); t"
COUNT_SYNCS = """
real <- sv__sync; syncs <- 0
sv__sync <- function(path, ...) { syncs <<- syncs + 1; real(path, ...) }
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return tmp_path / "x.lock.token"


def line(token: int, reserved: int, boot: str = BOOT) -> str:
    return f"sharedvol-token 1 {token:019d} {reserved:019d} {boot:<36}\n"


def is_locked(path: Path) -> bool:
    """What the kernel says, and a reader of the holder file asks: F_OFD_GETLK."""
    fd = os.open(path, os.O_RDONLY)
    try:
        asked = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = struct.unpack("@hhqqi0q", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    finally:
        os.close(fd)
    return kind != fcntl.F_UNLCK


def test_the_first_token_is_the_time_and_the_next_are_one_more(r: R, token: Path) -> None:
    before = time.time_ns() // 1000
    first = int(r.ask(TAKE))
    assert before <= first <= time.time_ns() // 1000
    assert token.read_text() == line(first, first + 10_000)
    assert stat.S_IMODE(token.stat().st_mode) == 0o666
    inode = token.stat().st_ino
    assert [int(r.ask(TAKE)) for _ in range(3)] == [first + 1, first + 2, first + 3]
    assert token.read_text() == line(first + 3, first + 10_000)
    assert token.stat().st_ino == inode  # written in place


def test_tokens_grow_over_kills_and_processes(start_r: Callable[[], R]) -> None:
    tokens = []
    for _ in range(3):
        r = start_r()
        tokens.append(int(r.ask(TAKE)))
        tokens.append(int(r.ask("sv_lock('x.lock', fenced = TRUE)$token")))
        r.kill()
    assert tokens == sorted(set(tokens))


def test_the_disk_is_waited_for_where_a_power_cut_could_repeat_a_token(r: R, token: Path) -> None:
    r.ask(COUNT_SYNCS)
    first = int(r.ask(TAKE))
    assert r.ask("syncs; s <- syncs; syncs <- 0; s") == "4"  # the file, its name, the reservation, the name
    r.ask(TAKE)
    assert r.ask("syncs") == "0"
    token.write_text(line(first + 9_999, first + 10_000))
    assert int(r.ask(TAKE)) == first + 10_000
    assert r.ask("syncs") == "0"
    assert int(r.ask(TAKE)) == first + 10_001  # beyond what was reserved
    assert r.ask("syncs") == "1"
    assert token.read_text() == line(first + 10_001, first + 20_001)


def test_after_a_boot_tokens_go_on_beyond_all_that_were_reserved(r: R, token: Path) -> None:
    r.ask(COUNT_SYNCS)
    for boot in ("9a7467b8-0000-4311-8dbe-50941900131c", "-"):
        token.write_text(line(1000, 5000, boot))
        assert r.ask(TAKE) == "5001"
        assert token.read_text() == line(5001, 15001)
    assert r.ask("syncs") == "4"  # the reservation, and the file's name


def test_where_the_boot_is_unknown_each_token_is_synced(r: R, token: Path) -> None:
    r.ask(f"{COUNT_SYNCS}sv__boot_id <- function() '-'")
    token.write_text(line(1000, 5000, "-"))
    assert r.ask(TAKE) == "5001"
    assert r.ask(TAKE) == "15002"
    assert token.read_text() == line(15002, 25002, "-")
    assert r.ask("syncs") == "4"


def test_a_reservation_is_believed_only_when_it_is_on_the_disk(r: R, token: Path) -> None:
    """The writer is killed before its sync: were the boot in the file by then, the next token could come again."""
    token.write_text(line(7, 7))
    r.ask("real <- sv__sync; sv__sync <- function(path, ...) tools::pskill(Sys.getpid(), 9)")
    r.tell(TAKE)
    r.ended()
    assert token.read_text() == line(8, 10_008, "-")


def test_a_deleted_file_takes_no_token_back(r: R, token: Path) -> None:
    last = int(r.ask(TAKE))
    token.unlink()
    assert int(r.ask(TAKE)) > last


@pytest.mark.parametrize(
    "content",
    ["", "x", line(1, 2)[:-1], line(1, 2) + " ", line(1, 2).replace(" 1 ", " 2 "), "x" * 95, line(2**53, 2**53 + 1)],
)
def test_a_damaged_file_is_refused_and_the_lock_given_back(r: R, token: Path, content: str) -> None:
    token.write_text(content)
    error = r.fails(TAKE)
    assert error.classes[:2] == ["sv_lock_error", "sv_error"]
    assert str(token) in str(error)
    assert token.read_text() == content
    assert is_free(token.with_name("x.lock"))
    token.unlink()
    assert int(r.ask(TAKE)) > 0


def test_a_token_file_that_is_none_is_refused(r: R, token: Path) -> None:
    elsewhere = token.with_name("elsewhere")
    elsewhere.write_text(line(1, 2))
    for make in (lambda: token.symlink_to(elsewhere), lambda: token.symlink_to("nowhere"), lambda: os.mkfifo(token)):
        make()
        assert r.fails(TAKE).classes[0] == "sv_lock_error"
        token.unlink()
    assert elsewhere.read_text() == line(1, 2)


def test_no_token_where_the_file_cannot_be_written(r: R, token: Path) -> None:
    token.write_text(line(1, 5000))
    r.ask("sv__write <- function(...) NULL")  # as R's close() is on a full disk: it says nothing
    assert r.fails(TAKE).classes[0] == "sv_lock_error"
    assert is_free(token.with_name("x.lock"))


def test_the_holder_says_who_it_is(tmp_path: Path) -> None:
    with R(tmp_path, HOSTNAME="web1") as r:
        r.ask("l <- sv_lock('x.lock', fenced = TRUE, purpose = hex('6ec3a9225c0a017f'))")
        holder = tmp_path / "x.lock.holder"
        content = holder.read_bytes()
        assert len(content) == 1024
        assert content.endswith(b" \n")
        assert stat.S_IMODE(holder.stat().st_mode) == 0o666
        said = json.loads(content)
        since = said.pop("since")
        assert abs(since - holder.stat().st_mtime) < 60
        assert said == {
            "sharedvol": 1,
            "token": int(r.ask("l$token")),
            "replica": "web1",
            "pid": r.pid,
            "worker": r.ask("sv_worker_token()"),
            "purpose": 'né"\\\n\x01\x7f',
        }
        assert is_locked(holder)
        r.ask("sv_unlock(l)")
        assert not is_locked(holder)


@pytest.mark.parametrize("purpose", ["x" * 200, "é" * 200, "\x01" * 200, "\U0001f600" * 200])
def test_a_long_purpose_is_cut_where_there_is_no_room(r: R, tmp_path: Path, purpose: str) -> None:
    digits = purpose.encode().hex()
    r.ask(f"l <- sv_lock('x.lock', fenced = TRUE, purpose = hex('{digits}'))")
    content = (tmp_path / "x.lock.holder").read_bytes()
    assert len(content) == 1024
    said = json.loads(content)["purpose"]
    assert purpose.startswith(said)
    assert len(said) >= 100
    assert len(said) == 200 or len(content.rstrip()) > 1000
    r.ask("sv_unlock(l)")
    assert r.fails("sv_lock('x.lock', fenced = TRUE, purpose = strrep('x', 201))").classes[0] == "sv_lock_error"


def test_a_holder_file_that_is_too_long_is_made_right(r: R, tmp_path: Path) -> None:
    holder = tmp_path / "x.lock.holder"
    holder.write_text("x" * 5000)
    r.ask("l <- sv_lock('x.lock', fenced = TRUE)")
    assert json.loads(holder.read_bytes())["pid"] == r.pid
    assert holder.stat().st_size == 1024


def test_a_holder_file_that_cannot_be_written_is_nobodys_concern(r: R, tmp_path: Path) -> None:
    holder = tmp_path / "x.lock.holder"
    holder.mkdir()
    assert int(r.ask(TAKE)) > 0
    holder.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    holder.symlink_to(elsewhere)
    assert int(r.ask(TAKE)) > 0
    assert elsewhere.read_text() == "not ours"


def test_the_holder_files_lock_is_never_waited_for(start_r: Callable[[], R], tmp_path: Path) -> None:
    first, second = start_r(), start_r()
    first.ask("h <- sv_lock('x.lock.holder')")
    second.ask("l <- sv_lock('x.lock', fenced = TRUE)")
    assert second.descriptors(tmp_path / "x.lock.holder") == 0
    assert first.ask("sv_held(h)") == "TRUE"


def test_a_plain_lock_writes_nothing_beside_it(r: R, tmp_path: Path) -> None:
    r.ask("sv_unlock(sv_lock('x.lock', purpose = 'plain'))")
    assert os.listdir(tmp_path) == ["x.lock"]


def test_a_shared_lock_has_no_token(r: R, tmp_path: Path) -> None:
    assert r.fails("sv_lock('x.lock', shared = TRUE, fenced = TRUE)").classes[0] == "sv_lock_error"
    assert os.listdir(tmp_path) == []


def test_a_token_that_is_not_ours_is_a_lost_lock(r: R, token: Path) -> None:
    mine = int(r.ask("l <- sv_lock('x.lock', fenced = TRUE); l$token"))
    token.write_text(line(mine + 1, mine + 10_000))
    assert r.ask("sv_held(l)") == "FALSE"
    assert r.fails("sv_unlock(l)").classes[:2] == ["sv_lock_lost", "sv_lock_error"]
    assert is_free(token.with_name("x.lock"))


def test_one_hold_has_one_token(r: R) -> None:
    code = """
    plain <- sv_lock('x.lock'); a <- sv_lock('x.lock', fenced = TRUE); b <- sv_lock('x.lock', fenced = TRUE)
    stopifnot(is.null(plain$token), identical(a$token, b$token))
    sv_unlock(a); sv_unlock(b); held <- sv_held(plain); sv_unlock(plain); held
    """
    assert r.ask(code) == "TRUE"
