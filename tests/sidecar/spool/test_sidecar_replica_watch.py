"""What the sidecar knows of replicas costs as much as what changed, and agrees with the register."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.members import joined
from support.processes import Child, run_forked, wait_until
from support.sidecar.volume import Volume

import sharedvol
from sharedvol.volume.open_register import OpenRegister
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.monitor import replica_watch
from sharedvol_sidecar.monitor.replica_watch import SHOWN, ReplicaWatch, RollCall
from sharedvol_sidecar.service.views import show_replicas

HOUR = 3600 * 10**9
OTHER = 4242


class Clock:
    """A clock that the test sets, in nanoseconds."""

    now = 0

    def __call__(self) -> int:
        return self.now


class Watched:
    """A watch, and what it did."""

    def __init__(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.watch = ReplicaWatch(open_root(spool), self.clock)
        self.volume, self._spool = sharedvol.Volume(spool), spool
        self.listings = self.asked = 0
        for owner, name in ((os, "scandir"), (OpenRegister, "is_alive")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            if name == "scandir":
                self.listings += 1
            else:
                self.asked += 1
            return call(*args)

        return counted

    def look(self, *, later: int = HOUR) -> RollCall:
        if later == HOUR:
            self._pass_a_tick()
        self.clock.now += later
        return self.watch.look()

    def _pass_a_tick(self) -> None:
        """The clock of the test is ahead of the file system's, which must not stand still meanwhile."""
        names = self._spool / ".replicas/names"
        if names.is_dir():
            probe = self._spool / ".probe"
            wait_until(lambda: probe.touch() or probe.stat().st_ctime_ns > names.stat().st_ctime_ns, "a tick")

    def settle(self) -> RollCall:
        """Look until nothing is left to list."""
        for _ in range(100):
            before = self.listings
            found = self.look()
            if self.listings == before:
                return found
        raise AssertionError("it never comes to rest")


@pytest.fixture
def watched(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(volume.spool, monkeypatch)


def plant(spool: Path, names: list[str], *, record: bool = True) -> None:
    sharedvol.Volume(spool).join("maker").leave()
    sharedvol.Volume(spool).forget("maker")
    for name in names:
        (spool / f".replicas/names/{name}.lock").touch(0o666)
        if record:
            (spool / f".replicas/names/{name}.json").write_text(f'{{"name": "{name}"}}')


def files(spool: Path) -> set[str]:
    return set(os.listdir(spool / ".replicas/names"))


def counts(found: RollCall) -> tuple[int, int, int]:
    return found.alive, found.dead, found.unknown


@contextmanager
def recorded(spool: Path, name: str) -> Iterator[Callable[[], None]]:
    """A replica that has written its record and holds the gate, and takes its lock when it is told."""
    volume = sharedvol.Volume(spool)
    real = OpenRegister.write
    with ExitStack() as stack:

        def work(connection: Any) -> None:
            def write(register: OpenRegister, information: Any) -> None:
                real(register, information)
                connection.send("written")
                connection.recv()

            OpenRegister.write = write  # type: ignore[method-assign]
            volume.join(name)
            connection.send("joined")
            connection.recv()

        child = stack.enter_context(Child(work))
        assert child.receive() == "written"

        def take() -> None:
            assert child.ask("take") == "joined"

        yield take
        child.send("end")


@pytest.mark.parametrize("record", [True, False])
def test_a_look_without_a_change_asks_of_the_living_alone_however_many_there_were(
    volume: Volume, watched: Watched, record: bool
) -> None:
    with watched.volume.join("c1"):
        costs = []
        for count in (0, 300, 3000):
            plant(volume.spool, [f"d{number}" for number in range(count)], record=record)
            watched.settle()
            watched.listings = watched.asked = 0
            assert watched.look().alive == 1
            costs.append((watched.listings, watched.asked))
    assert costs == [(0, 1)] * 3


def test_a_change_costs_what_changed(volume: Volume, watched: Watched) -> None:
    plant(volume.spool, [f"d{number}" for number in range(1000)])
    watched.settle()
    watched.asked = 0
    with watched.volume.join("c1"):
        assert watched.settle().alive == 1
    assert watched.asked < 20


def test_those_that_come_die_and_come_again_are_seen(volume: Volume, watched: Watched) -> None:
    assert counts(watched.settle()) == (0, 0, 0)
    for _ in range(3):
        with Child(joined(volume.spool, "c1")) as child:
            slot = child.receive()
            found = watched.settle()
            assert counts(found) == (1, 0, 0)
            assert [(one.name, one.alive, one.slot) for one in found.views] == [("c1", True, slot)]
            child.kill()
        found = watched.settle()
        assert counts(found) == (0, 1, 0)
        assert [(one.name, one.alive) for one in found.views] == [("c1", False)]
    sharedvol.Volume(volume.spool).forget("c1")
    assert counts(watched.settle()) == (0, 0, 0)


def test_one_that_has_a_record_and_takes_its_lock_later_is_seen(volume: Volume, watched: Watched) -> None:
    """The lock changes nothing in the directory."""
    plant(volume.spool, ["c1"])
    watched.settle()
    with recorded(volume.spool, "c1") as take:
        for _ in range(3):
            assert watched.look().alive == 0
        take()
        assert watched.look().alive == 1


def test_within_a_tick_of_a_change_the_directory_is_read_again(volume: Volume, watched: Watched) -> None:
    plant(volume.spool, ["d1"])
    watched.look()
    for _ in range(3):
        before = watched.listings
        watched.look(later=1)
        assert watched.listings == before + 1
    watched.look()
    before = watched.listings
    watched.look()
    assert watched.listings == before


def test_a_look_examines_a_bounded_number(volume: Volume, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_watch, "EXAMINED", 10)
    plant(volume.spool, [f"d{number}" for number in range(34)])
    with watched.volume.join("c1"):
        unknown = []
        while not unknown or unknown[-1]:
            before = watched.asked
            unknown.append(watched.look().unknown)
            assert watched.asked - before <= 20
        assert len(unknown) >= 4 and unknown == sorted(unknown, reverse=True)
        assert counts(watched.settle()) == (1, 34, 0)


def test_a_directory_that_changes_without_end_is_not_listed_without_end(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that took a second is followed by twenty seconds without one."""
    watched = Watched(volume.spool, monkeypatch)
    plant(volume.spool, ["d1"])
    real = OpenRegister.is_changing

    def slow(register: OpenRegister) -> bool:
        watched.clock.now += 10**9
        return real(register)

    monkeypatch.setattr(OpenRegister, "is_changing", slow)
    for number in range(100):
        (volume.spool / f".replicas/names/e{number}.json").touch()
        watched.look(later=10**9)
    assert 3 <= watched.listings <= 6


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_the_register_whatever_happens(
    volume: Volume, watched: Watched, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(replica_watch, "EXAMINED", 7)
    choose = random.Random(seed)
    live: dict[str, Any] = {}
    names = volume.spool / ".replicas/names"
    sharedvol.Volume(volume.spool).join("maker").leave()

    def join(name: str) -> None:
        if name not in live:
            live[name] = sharedvol.Volume(volume.spool).join(name)

    def leave(name: str) -> None:
        if name in live:
            live.pop(name).leave()

    def forget(name: str) -> None:
        if name not in live:
            sharedvol.Volume(volume.spool).forget(name)

    def spoil(name: str) -> None:
        if name not in live:
            (names / f"{name}.json").unlink(missing_ok=True)

    for _ in range(60):
        choose.choice((join, join, leave, forget, spoil))(f"c{choose.randrange(12)}")
        if choose.random() < 0.5:
            watched.look(later=choose.choice((0, HOUR)))
    for _ in range(3):  # each asks of seven that were alive
        found = watched.settle()
    known = watched.volume.replicas()
    assert {(one.name, one.alive) for one in found.views} == {(one.name, one.alive) for one in known}
    assert counts(found) == (len(live), len(known) - len(live), 0)
    for one in live.values():
        one.leave()


def passes(volume: Volume, most: int = 40, **changes: Any) -> tuple[int, int, int]:
    """What the board shows after some passes of the service."""
    from sharedvol_sidecar.monitor.state import ServiceState

    collector, board, clock = volume.collector(catalog=None, **changes), ServiceState(), Clock()
    collector.replicas = ReplicaWatch(open_root(volume.spool), clock)
    for _ in range(most):
        clock.now += HOUR
        show_replicas(board, collector)
    collector.close()
    picture = board.picture()
    assert len(picture.replicas) <= SHOWN
    return picture.replicas_alive, picture.replicas_dead, picture.replicas_unknown


def test_more_of_the_dead_than_are_shown_are_forgotten_and_the_living_never(volume: Volume) -> None:
    plant(volume.spool, [f"d{number}" for number in range(SHOWN + 150)])
    with Child(joined(volume.spool, "c1")) as child:
        child.receive()
        assert passes(volume) == (1, SHOWN, 0)
        assert sharedvol.Volume(volume.spool).is_alive("c1") is True
        assert len([name for name in files(volume.spool) if name.endswith(".json")]) == SHOWN + 1
        child.send("end")


def test_lock_files_without_a_record_are_removed(volume: Volume) -> None:
    """Those are what an earlier release leaves of a container that was forgotten."""
    plant(volume.spool, [f"d{number}" for number in range(50)], record=False)
    assert passes(volume) == (0, 0, 0)
    assert files(volume.spool) == set()


def test_a_dead_container_whose_directory_is_there_is_not_forgotten(volume: Volume) -> None:
    names = [f"d{number}" for number in range(SHOWN + 50)]
    plant(volume.spool, names)
    for name in names:
        (volume.spool / name).mkdir()
    assert passes(volume) == (0, len(names), 0)
    assert all(sharedvol.Volume(volume.spool).is_alive(name) is False for name in names)


def test_where_directories_are_kept_nothing_is_forgotten(volume: Volume) -> None:
    plant(volume.spool, [f"d{number}" for number in range(SHOWN + 50)])
    before = files(volume.spool)
    assert passes(volume, orphans=False) == (0, SHOWN + 50, 0)
    assert files(volume.spool) == before


def test_what_is_no_file_of_ours_is_left(volume: Volume, tmp_path: Path) -> None:
    plant(volume.spool, ["d1", "d2", "d3"], record=False)
    names = volume.spool / ".replicas/names"
    (tmp_path / "elsewhere").write_text("only copy")
    for path in (names / "d1.lock", names / "d2.lock", names / "d3.lock"):
        path.unlink()
    (names / "d1.lock").symlink_to(tmp_path / "elsewhere")
    (names / "d2.lock").mkdir()
    os.mkfifo(names / "d3.lock")
    before = files(volume.spool)
    passes(volume)
    assert files(volume.spool) == before
    assert (tmp_path / "elsewhere").read_text() == "only copy"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_what_another_user_planted_is_listed_once_and_left(volume: Volume, tmp_path: Path) -> None:
    """The directory is sticky."""
    plant(volume.spool, [f"d{number}" for number in range(SHOWN + 50)])
    before = files(volume.spool)
    for path in (volume.spool, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    spool = open_root(volume.spool)

    def work() -> tuple[int, int]:
        os.setresuid(OTHER, OTHER, OTHER)
        watch, clock = ReplicaWatch(spool, clock := Clock()), clock
        for _ in range(10):
            clock.now += HOUR
            found = watch.look()
            watch.forget(sharedvol.Volume(volume.spool, timeout=0), 500)
        return found.dead, len(watch._candidates)

    assert run_forked(work) == (SHOWN + 50, 0)
    assert files(volume.spool) == before
