"""A directory of the register is swapped for another at any step: no file outside the register changes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_forked

from sharedvol import SharedVolError, Volume

CALLS = ["mkdir", "chmod", "fchmod", "rename", "link", "unlink", "rmdir", "open", "stat", "lstat", "listdir", "scandir"]

USER = 4242

Swap = Callable[[Path, Path], None]


class Swapper:
    """Swaps once, before the ``number``-th system call of a block."""

    def __init__(self, number: int, swap: Callable[[], bool]) -> None:
        self._left, self._swap = number, swap
        self.done = self._busy = False

    def step(self) -> None:
        if self._busy:
            return
        self._busy = True  # the calls of the swap itself do not count
        if self._left <= 0 and not self.done:
            self.done = self._swap()
        self._left -= 1
        self._busy = False

    @contextmanager
    def watching(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def around(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                self.step()
                return call(*args, **options)

            return called

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, around(getattr(os, name)))
            for name in ("fcntl", "flock"):
                patch.setattr(fcntl, name, around(getattr(fcntl, name)))
            yield


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A closed directory outside of the volume, with files that have the register's names."""
    path = tmp_path / "victim"
    for part in ("names", "slots"):
        (path / part).mkdir(parents=True)
    for name in ("c1.json", "result"):
        (path / name).write_text("only copy")
    (path / "join.lock").touch(0o600)
    (path / "names").chmod(0o700)
    path.chmod(0o700)
    return path


def picture(top: Path) -> dict[str, tuple[int, int, str]]:
    """Each path below: its mode, inode and content."""
    found = {}
    top = top.resolve()
    for path in (top, *sorted(top.rglob("*"))):
        info = path.lstat()
        found[str(path.relative_to(top))] = (info.st_mode, info.st_ino, path.read_text() if path.is_file() else "")
    return found


def link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def rename(place: Path, victim: Path) -> None:
    """As another user may in a directory that all may write and that is not sticky."""
    victim.rename(place)
    victim.symlink_to(place)


def exchange(place: Path, victim: Path, how: Swap) -> bool:
    """Put the victim at a path. False if there is nothing at that path yet."""
    if not place.is_dir() or place.is_symlink():
        return False
    shutil.move(place, place.with_name(f"{place.name}-aside"))
    how(place, victim)
    return True


def forget(volume: Volume) -> None:
    with volume.hold_dead("c1") as dead:
        if dead:
            volume.forget("c1")


def join(volume: Volume) -> None:
    volume.join("c1").leave()


def join_and_look(volume: Volume) -> None:
    with volume.join("c2"):
        volume.replicas(), volume.slots(), volume.is_alive("c1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give the register to another user")
@pytest.mark.parametrize("how", [link, rename])
@pytest.mark.parametrize("part", [".replicas", ".replicas/names", ".replicas/slots"])
@pytest.mark.parametrize("work", [forget, join, join_and_look])
def test_a_swapped_directory_of_the_register_loses_and_gains_nothing(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Volume], None], part: str, how: Swap
) -> None:
    """The register is another user's, the victim is root's."""
    number = 0
    while True:
        top = tmp_path / str(number)
        top.mkdir()
        Volume(top).join("c1").leave()
        own = top / "victim"
        shutil.copytree(victim, own)
        if how is rename:
            shutil.rmtree(own / "names")
        for path in (".replicas", ".replicas/names", ".replicas/slots"):
            os.chown(top / path, USER, USER)
        before = picture(own)
        swapper = Swapper(number, lambda: exchange(top / part, own, how))  # noqa: B023
        volume = Volume(top, timeout=0)
        with swapper.watching(monkeypatch), suppress(SharedVolError):
            work(volume)
        assert picture(own) == before, f"step {number}"
        if not swapper.done:
            break
        number += 1
    assert number > 10


def test_a_replica_that_joins_first_at_any_step_does_not_keep_another_from_joining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has made the register removes what the other is making."""
    number = 0
    while True:
        top = tmp_path / str(number)
        top.mkdir()

        def join_first() -> bool:
            if (top / ".replicas").exists():  # noqa: B023
                return False
            run_forked(lambda: Volume(top).join("c2").leave())  # noqa: B023
            return True

        swapper = Swapper(number, join_first)
        with swapper.watching(monkeypatch):
            Volume(top).join("c1").leave()
        assert not list(top.glob(".replicas.*")), f"step {number}"
        if not swapper.done:
            break
        number += 1
    assert number > 10


@pytest.mark.parametrize("how", [link, rename])
def test_a_swapped_skeleton_of_the_register_loses_and_gains_nothing(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, how: Swap
) -> None:
    """Also where the process that makes it then removes what it made."""
    swaps = number = 0
    while True:
        top = tmp_path / str(number)
        top.mkdir()
        own = top / "victim"
        shutil.copytree(victim, own)
        if how is rename:
            shutil.rmtree(own / "names")
        before = picture(own)

        def swap() -> bool:
            return any(exchange(path, own, how) for path in top.glob(".replicas.*.new"))  # noqa: B023

        swapper = Swapper(number, swap)
        with swapper.watching(monkeypatch), suppress(SharedVolError):
            Volume(top).join("c1").leave()
        (now,) = [path for path in top.iterdir() if path.lstat().st_ino == before["."][1]]
        assert picture(now) == before, f"step {number}"
        if not swapper.done:
            break
        swaps += 1
        number += 1
    assert swaps > 10


def test_only_an_empty_skeleton_is_cleared_away(tmp_path: Path, victim: Path) -> None:
    """A directory with a skeleton's name and a file in it, or a link with such a name, stays as it is."""
    shutil.copytree(victim, tmp_path / ".replicas.a.new")
    (tmp_path / ".replicas.b.new").symlink_to(victim)
    full = tmp_path / ".replicas.c.new"
    (full / "names").mkdir(parents=True)
    (full / "names/c1.json").write_text("only copy")
    (full / "slots").mkdir()
    (full / "join.lock").touch()
    for name in ("d", "e"):
        (tmp_path / f".replicas.{name}.new").mkdir()
    (tmp_path / ".replicas.e.new/names").mkdir()
    (tmp_path / ".replicas.e.new/join.lock").touch()
    left = [tmp_path / f".replicas.{name}.new" for name in "abc"]
    before = [picture(path) for path in (*left, victim)]
    Volume(tmp_path).join("c1").leave()
    assert [picture(path) for path in (*left, victim)] == before
    assert not (tmp_path / ".replicas.d.new").exists() and not (tmp_path / ".replicas.e.new").exists()


@pytest.mark.parametrize("part", [".replicas", ".replicas/names", ".replicas/slots"])
def test_a_register_that_others_can_rearrange_is_not_believed(tmp_path: Path, part: str) -> None:
    Volume(tmp_path).join("c1").leave()
    (tmp_path / part).chmod(0o777)
    for refused in (Volume(tmp_path).join, Volume(tmp_path).replicas, lambda: Volume(tmp_path).is_alive("c1")):
        with pytest.raises(SharedVolError, match=r"has mode 0777.*1777.*remove"):
            refused()
    (tmp_path / part).chmod(0o755)
    assert Volume(tmp_path).is_alive("c1") is False


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory to another user")
def test_a_register_whose_parts_are_of_two_users_is_not_believed(tmp_path: Path) -> None:
    Volume(tmp_path).join("c1").leave()
    os.chown(tmp_path / ".replicas/names", USER, USER)
    with pytest.raises(SharedVolError, match=f"belongs to user {USER}"):
        Volume(tmp_path).is_alive("c1")
    for path in (tmp_path / ".replicas", tmp_path / ".replicas/slots"):
        os.chown(path, USER, USER)
    assert Volume(tmp_path).is_alive("c1") is False
