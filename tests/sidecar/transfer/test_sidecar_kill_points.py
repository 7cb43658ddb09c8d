"""Killed at any call, alone or beside another, in recovery too: no file is lost, doubled or half-visible."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sidecar.killing import (
    Scene,
    Violation,
    every_kill_point,
    every_second_kill,
    forbid_links_of_claims,
    forbid_renameat2,
)

import sharedvol_sidecar.fs.content as contents
import sharedvol_sidecar.fs.directory as directories
import sharedvol_sidecar.transfer.linker as publisher
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.placer import Placer

EXHAUSTIVE = os.environ.get("SHAREDVOL_EXHAUSTIVE") == "1"
STEP = 1 if EXHAUSTIVE else 11
MOVING = 150
"""The number of a call from before a mover claims the first file. The calls before it only prepare the directories."""

both_modes = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
one_or_two = pytest.mark.parametrize("second_mover", [False, True], ids=["alone", "beside-another"])


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a patch changes in this process, as in the child, is changed back."""
    monkeypatch.setattr(os, "link", os.link)
    monkeypatch.setattr(directories, "_libc", directories._libc)
    monkeypatch.setattr(contents, "CHUNK", contents.CHUNK)
    for owner, name in ((Claimer, "claim"), (Linker, "link"), (Placer, "place"), (publisher, "stage")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield


@pytest.fixture
def linked(tmp_path: Path) -> Scene:
    return Scene(tmp_path, tmp_path)


@pytest.fixture
def copied(tmp_path: Path, other_file_system: Path) -> Scene:
    return Scene(tmp_path, other_file_system)


@both_modes
@one_or_two
def test_linked(linked: Scene, after: bool, second_mover: bool) -> None:
    calls = every_kill_point(linked, after=after, second_mover=second_mover, step=STEP)
    assert linked.kills * STEP >= calls > 60


@both_modes
@one_or_two
def test_copied(copied: Scene, after: bool, second_mover: bool) -> None:
    calls = every_kill_point(copied, after=after, second_mover=second_mover, step=STEP)
    assert copied.kills * STEP >= calls > 80


@both_modes
@one_or_two
@pytest.mark.usefixtures("restored")
def test_copied_because_linking_is_forbidden(tmp_path: Path, after: bool, second_mover: bool) -> None:
    scene = Scene(tmp_path, tmp_path)
    forbid_links_of_claims()
    forbid_renameat2()
    calls = every_kill_point(scene, after=after, second_mover=second_mover, step=STEP)
    assert scene.kills * STEP >= calls > 80


@both_modes
@pytest.mark.parametrize("second_mover", [True])
def test_copied_without_unnamed_files(copied: Scene, after: bool, second_mover: bool) -> None:
    def prepare() -> None:
        real = os.open

        def without(path: str, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return real(path, flags, *args, **options)

        os.open = without  # type: ignore

    calls = every_kill_point(copied, after=after, second_mover=second_mover, step=STEP, prepare=prepare)
    assert copied.kills * STEP >= calls > 80


@pytest.mark.parametrize("where", ["linked", "copied"])
def test_while_everything_is_put_back(where: str, request: pytest.FixtureRequest) -> None:
    """The destination fails after the names were given; the mover is killed while it takes them back."""
    scene: Scene = request.getfixturevalue(where)

    def failing(self: Destination) -> None:
        raise OSError(errno.EIO, "input/output error")

    def prepare() -> None:
        Destination.sync = failing  # type: ignore

    calls = every_kill_point(scene, after=False, second_mover=True, step=STEP, prepare=prepare)
    assert scene.kills * STEP >= calls > 60


@pytest.mark.parametrize("where", ["linked", "copied"])
def test_killed_again_in_recovery(where: str, request: pytest.FixtureRequest) -> None:
    scene: Scene = request.getfixturevalue(where)
    every_second_kill(scene, first_step=3 if EXHAUSTIVE else 61, second_step=1 if EXHAUSTIVE else 23)
    assert scene.kills > 10


def overwrite(self: Linker, item: Item, directory: Any, final: str) -> None:
    place, name = item.source
    os.link(name, f"{final}.new", src_dir_fd=place.fd, dst_dir_fd=directory.fd)
    os.replace(f"{final}.new", final, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)


def skip_claim(self: Claimer, item: Item, batch: Any) -> bool:
    item.claim = item.candidate.directory
    item.claim_path = f"{self._claims.slot}/{batch.name}/{item.candidate.path}"
    return True


def unlink_first(self: Placer, items: list[Item]) -> list[Item]:
    self._destination.begin()
    for item in items:
        target = self._linker._template.target(item.candidate.origin, item.day)
        directory, name = self._destination.locate(target)
        content = os.pread(item.fd, 1000, 0)
        if item.claim is not None:
            os.unlink(item.candidate.name, dir_fd=item.claim.fd)
        _write(directory.fd, f".{name}", content)
        os.rename(f".{name}", f"{name}-{item.info.st_ino}", src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    return items


def name_before_content(self: Placer, items: list[Item]) -> list[Item]:
    self._destination.begin()
    for item in items:
        target = self._linker._template.target(item.candidate.origin, item.day)
        directory, name = self._destination.locate(target)
        _write(directory.fd, f"{name}-{item.info.st_ino}", os.pread(item.fd, 1000, 0))
    return items


def _write(directory: int, name: str, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=directory)
    for start in range(0, len(content), 16):
        os.write(fd, content[start : start + 16])
        os.fsync(fd)
    os.close(fd)


PLANTED: list[tuple[type, str, Callable[..., Any], str, str]] = [
    (Linker, "link", overwrite, "linked", "overwritten"),
    (Claimer, "claim", skip_claim, "copied", "doubled"),
    (Placer, "place", unlink_first, "linked", "lost"),
    (Placer, "place", name_before_content, "linked", "half-written"),
]


@pytest.mark.parametrize(
    ("owner", "step", "bug", "where", "word"), PLANTED, ids=[bug.__name__ for _, _, bug, _, _ in PLANTED]
)
@pytest.mark.usefixtures("restored")
def test_planted_bugs_are_caught(
    owner: type, step: str, bug: Callable[..., Any], where: str, word: str, request: pytest.FixtureRequest
) -> None:
    scene: Scene = request.getfixturevalue(where)
    setattr(owner, step, bug)
    with pytest.raises(Violation, match=word):
        every_kill_point(scene, after=False, start=MOVING, step=3)
