"""The file lock and every other implementation on the machine exclude each other, and nobody loses an update."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest
from support.peers import (
    FCNTL_FAMILY,
    FLOCK_FAMILY,
    PEERS,
    Fasteners,
    Flock1,
    Flock1Shared,
    Lockf,
    LockfShared,
    Ours,
    OursBounded,
    OursShared,
    Peer,
    Portalocker,
    PythonFilelock,
    Unlocked,
    driven,
    read_number,
)
from support.processes import LIMIT, wait_until

from sharedvol import FileLock, LockTimeout
from sharedvol.locks.file import waiter

SHORT = 0.02
"""Seconds of a wait that is meant to end without the lock."""
TIMES = 200

all_peers = pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.__name__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "counter"
    path.write_text("0")
    return path


def excluded(path: Path, *, shared: bool = False) -> bool:
    """Whether our lock is kept out, tried and waited for."""
    lock = FileLock(path, shared=shared)
    for timeout in (0, SHORT):
        try:
            lock.acquire(timeout=timeout)
        except LockTimeout:
            continue
        lock.release()
        return False
    return True


@all_peers
def test_a_peer_that_holds_keeps_us_out_until_it_releases(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as peer:
        assert peer.ask("try") is True
        assert excluded(path)
        assert peer.ask("release") == "released"
        with FileLock(path, timeout=LIMIT) as lock:
            assert lock.held
        peer.send("end")


@all_peers
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_we_get_the_lock_when_the_peer_releases(path: Path, kind: type[Peer], timeout: float | None) -> None:
    kind_of_ours = OursBounded if timeout else Ours
    with driven(kind, path) as peer, driven(kind_of_ours, path) as ours:
        assert peer.ask("try") is True
        ours.send("block")
        assert not ours.connection.poll(SHORT)
        assert peer.ask("release") == "released"
        assert ours.receive() == "held"
        assert peer.ask("try") is False
        peer.send("end")
        ours.send("end")


@all_peers
def test_we_keep_a_peer_out_until_we_release(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as peer:
        with FileLock(path):
            assert peer.ask("try") is False
        assert peer.ask("try") is True
        assert peer.ask("release") == "released"
        with FileLock(path, timeout=0):
            peer.send("block")
            assert not peer.connection.poll(SHORT)
        assert peer.receive() == "held"
        assert excluded(path)
        peer.send("end")


@all_peers
def test_a_killed_peer_frees_at_once(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as peer:
        assert peer.ask("block") == "held"
        with pytest.raises(LockTimeout):
            FileLock(path, timeout=0).acquire()
        peer.kill()
        with FileLock(path, timeout=0) as lock:
            assert lock.held
    assert peer.status == -signal.SIGKILL


@all_peers
@pytest.mark.parametrize("ours", [Ours, OursShared])
def test_a_killed_holder_of_ours_frees_at_once(path: Path, kind: type[Peer], ours: type[Peer]) -> None:
    with driven(ours, path) as holder, driven(kind, path) as peer:
        assert holder.ask("block") == "held"
        assert peer.ask("try") is False
        holder.kill()
        assert peer.ask("try") is True
        peer.send("end")


@all_peers
def test_a_wait_of_ours_that_was_given_up_keeps_no_peer_out(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as holder, driven(kind, path) as other:
        assert holder.ask("try") is True
        assert excluded(path)
        assert holder.ask("release") == "released"
        wait_until(lambda: waiter.waiting() == 0, "the waiter to end")
        assert other.ask("try") is True
        holder.send("end")
        other.send("end")


@all_peers
@pytest.mark.parametrize("ours", [Ours, OursBounded], ids=["Ours", "OursBounded"])
def test_no_update_is_lost_beside_a_peer(path: Path, data: Path, kind: type[Peer], ours: type[Peer]) -> None:
    times = TIMES // 4 if kind is Flock1 else TIMES  # flock(1) starts two programs each time
    assert count_together([ours, ours, kind, kind], path, data, times) == 4 * times


@pytest.mark.parametrize("family", [FLOCK_FAMILY, FCNTL_FAMILY], ids=["flock", "fcntl"])
def test_no_update_is_lost_between_us_and_a_whole_family(path: Path, data: Path, family: list[type[Peer]]) -> None:
    kinds = [Ours, OursBounded, *family]
    assert count_together(kinds, path, data, TIMES // 4) == len(kinds) * (TIMES // 4)


def count_together(kinds: list[type[Peer]], path: Path, data: Path, times: int) -> int:
    """What the counter shows after each of ``kinds``, in a process of its own, counted to ``times``."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(driven(kind, path, data)) for kind in kinds]
        for child in children:
            child.send(f"count {times}")
        for child in children:
            assert child.receive() == "counted"
            child.send("end")
    return read_number(data)


@pytest.mark.parametrize(("first", "second"), [(Unlocked, Unlocked), (PythonFilelock, Lockf), (Fasteners, Portalocker)])
def test_updates_are_lost_where_two_do_not_exclude_each_other(
    path: Path, data: Path, first: type[Peer], second: type[Peer]
) -> None:
    """The counts above can fail: with no lock, and with peers of two families."""
    with driven(first, path, data) as slow, driven(second, path, data) as fast:
        assert slow.ask("slow") == "read"
        assert fast.ask(f"count {TIMES}") == "counted"
        assert slow.ask("write") == "counted"
        assert read_number(data) == 1 != TIMES + 1
        slow.send("end")
        fast.send("end")


@all_peers
def test_an_update_waits_for_a_slow_one(path: Path, data: Path, kind: type[Peer]) -> None:
    """As above, but with locks: the forced interleaving loses nothing."""
    for first, second in ((kind, Ours), (Ours, kind), (kind, OursBounded)):
        before = read_number(data)
        with driven(first, path, data) as slow, driven(second, path, data) as fast:
            assert slow.ask("slow") == "read"
            fast.send("count 10")
            assert not fast.connection.poll(SHORT)
            assert slow.ask("write") == "counted"
            assert fast.receive() == "counted"
            assert read_number(data) == before + 11
            slow.send("end")
            fast.send("end")


@pytest.mark.parametrize("kind", [Flock1Shared, LockfShared])
def test_shared_holders_of_ours_and_theirs_meet(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as peer:
        with FileLock(path, shared=True):
            assert peer.ask("try") is True
            assert peer.ask("release") == "released"
        assert peer.ask("try") is True
        assert excluded(path)
        with FileLock(path, shared=True, timeout=LIMIT) as lock:
            assert lock.held
        assert peer.ask("release") == "released"
        with FileLock(path, timeout=LIMIT):
            assert peer.ask("try") is False
        peer.send("end")


@all_peers
def test_a_shared_lock_of_ours_excludes_an_exclusive_peer(path: Path, kind: type[Peer]) -> None:
    with driven(kind, path) as peer:
        with FileLock(path, shared=True):
            assert peer.ask("try") is False
        assert peer.ask("try") is True
        assert excluded(path, shared=True)
        peer.send("end")
