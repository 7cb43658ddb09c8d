"""Writers are not trusted: what they put into the spool, or swap in while it is moved, by root and by a plain user."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sidecar.hostile import SECRET, THINGS, WRITER, Scene, scene

from sharedvol_sidecar.follow.copier import LogCopier
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.quiet_time import QuietTime
from sharedvol_sidecar.transfer import contents as reading
from sharedvol_sidecar.transfer import linker as publisher
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.transfer.release import ClaimRelease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")


@pytest.fixture(params=[0, 1000], ids=["root", "plain user"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param) as made:
        yield made


def once(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], act: Callable[[], None]) -> None:
    """Before the first call of a function for which ``when`` is true, somebody acts."""
    real = getattr(owner, name)
    done: list[bool] = []

    def called(*args: Any, **options: Any) -> Any:
        if not done and when(*args, **options):
            done.append(True)
            act()
        return real(*args, **options)

    patch.setattr(owner, name, called)


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("kind", ["results", "logs"])
def test_what_is_no_file_of_the_writers_is_refused_and_left(hostile: Scene, what: str, kind: str) -> None:
    thing = hostile.put(what, (hostile.results if kind == "results" else hostile.logs) / "a.json")
    before = thing.lstat()
    hostile.write(hostile.results / "good.json")
    counts = hostile.collect(passes=2)
    assert (counts["refused"], counts["collected"]) == (1, 0)
    assert list(hostile.collected().values()) == ["content"]
    after = thing.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    hostile.assert_kept()


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("place", ["c2", "c2/results", "results"])
def test_in_the_place_of_a_directory_it_leads_nowhere(hostile: Scene, what: str, place: str) -> None:
    (hostile.outside / "results").mkdir()
    (hostile.outside / "results" / "other.json").write_text(SECRET)
    if "/" in place:
        hostile.directory("c2")
    hostile.put(what, hostile.volume.spool / place)
    hostile.write(hostile.results / "good.json")
    assert hostile.collect()["collected"] == 1
    assert list(hostile.collected().values()) == ["content"]
    assert (hostile.outside / "results" / "other.json").read_text() == SECRET
    hostile.assert_kept()


STEPS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "before it is opened": (os, "open", lambda name, *args, **options: name == "a.json"),
    "before it is read": (reading, "digest", lambda *args: True),
    "before it is claimed": (os, "rename", lambda name, *args, **options: name == "a.json"),
    "before the claim is looked at": (Directory, "inode", lambda self, name: name == "a.json"),
    "before it gets its name": (publisher.Linker, "publish", lambda self, item: True),
    "before the lease is asked again": (ClaimRelease, "_confirm", lambda self, item: True),
    "before the claim goes": (os, "unlink", lambda name, *args, **options: name == "a.json"),
}


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("step", STEPS)
def test_swapped_in_while_a_file_is_moved(
    hostile: Scene, what: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile.write(hostile.results / "a.json")
    thing = hostile.put(what, hostile.stash / "thing")
    inode = thing.lstat().st_ino
    swapped = hostile.stash / "swapped"

    def swap() -> None:
        if os.path.lexists(path):
            path.rename(hostile.stash / "original")
        thing.rename(path)
        swapped.touch()

    owner, name, when = STEPS[step]
    with monkeypatch.context() as patch:
        once(patch, owner, name, when, swap)
        hostile.collect()
    assert swapped.exists()
    hostile.collect(passes=2)
    assert path.lstat().st_ino == inode, "what was swapped in is where its owner put it"
    original = hostile.stash / "original"
    assert list(hostile.collected().values()) == ([] if original.exists() else ["content"])
    assert not original.exists() or original.read_text() == "content"
    assert hostile.volume.claims() == []
    hostile.assert_kept()


@pytest.mark.parametrize("name", ["c1", "results"])
def test_directory_swapped_for_a_link_before_it_is_opened(
    hostile: Scene, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.write(hostile.results / "a.json")
    hostile.volume.spool.chmod(0o777)
    (hostile.outside / "results").mkdir()
    (hostile.outside / "results" / "a.json").write_text(SECRET)
    path = hostile.volume.spool / "c1" if name == "c1" else hostile.results

    def swap() -> None:
        path.rename(hostile.stash / "moved")
        path.symlink_to(hostile.outside if name == "c1" else hostile.outside / "results")

    with monkeypatch.context() as patch:
        once(patch, Directory, "open", lambda self, opened: opened == name and "spool" in self.shown, swap)
        assert hostile.collect()["collected"] == 0
    assert path.is_symlink() and hostile.collected() == {}
    assert (hostile.outside / "results" / "a.json").read_text() == SECRET
    hostile.assert_kept()


@pytest.mark.parametrize("step", ["before it is claimed", "before it gets its name", "before the claim goes"])
def test_directory_removed_or_moved_away_while_its_file_is_moved(
    hostile: Scene, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.write(hostile.results / "a.json")
    owner, name, when = STEPS[step]
    with monkeypatch.context() as patch:
        once(patch, owner, name, when, lambda: hostile.results.rename(hostile.stash / "moved"))
        hostile.collect()
    assert list(hostile.collected().values()) == ["content"]
    assert not list((hostile.stash / "moved").iterdir()) and hostile.volume.claims() == []


@pytest.mark.parametrize("what", THINGS)
def test_swapped_in_for_a_log_that_is_followed(hostile: Scene, what: str) -> None:
    thing = hostile.put(what, hostile.stash / "thing")
    path = hostile.write(hostile.logs / "app.log", "one\n")

    def work() -> None:
        log = os.open(path, os.O_WRONLY | os.O_APPEND)
        collector = hostile.volume.collector()
        collector.run_pass()
        path.rename(hostile.stash / "original")
        thing.rename(path)
        for text in (b"two\n", b"three\n"):
            os.write(log, text)
            collector.tick()
            collector.run_pass()
        os.close(log)
        for _ in range(4):
            collector.run_pass()
        collector.close()

    hostile.run(work)
    if hostile.user == 0:  # a plain user can take no lease of the writer's file
        assert list(hostile.collected().values()) == ["one\ntwo\nthree\n"]
    else:
        assert all("one\ntwo\nthree\n".startswith(text) for text in hostile.collected().values())
    assert os.path.lexists(path) and (hostile.stash / "original").read_text() == "one\ntwo\nthree\n"
    hostile.assert_kept()


def test_a_secret_that_goes_on_growing_is_not_followed(hostile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is changed again and again is copied before it is finished, and so before it is moved."""
    for path in (hostile.secret, hostile.write(hostile.stash / "own")):
        os.link(path, hostile.logs / path.name)
        text = path.read_text()
        path.write_text(text)  # after the link: a change time later than the last write says that it is finished
    (hostile.stash / "own").unlink()
    (hostile.logs / "own").write_text("content")
    monkeypatch.setattr(QuietTime, "watched", lambda self, info: 100.0)
    counts = hostile.collect(quiet=50.0, passes=2)
    assert counts["settling"] == 2
    assert list(hostile.collected().values()) == ["content"]
    hostile.assert_kept()


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_hard_link_that_everybody_may_read_is_copied_and_its_original_stays_as_it_is(
    hostile: Scene, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the mover dies after the claim: who finishes the work must not link it, and change its owner."""
    shared = hostile.outside / "shared"
    shared.write_text("for all")
    shared.chmod(mode)
    os.link(shared, hostile.results / "a.json")
    before = shared.stat()

    def die() -> int:
        pid = os.fork()
        if pid == 0:
            monkeypatch.setattr(Placer, "place", lambda self, items: os._exit(9))
            hostile.volume.one_pass()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert hostile.run(die) == 9
    assert len(hostile.volume.claims()) == 1
    changes = {"uid": 1234, "gid": 1234} if hostile.user == 0 else {}
    counts = hostile.collect(file_mode=0o666, **changes)
    assert (counts["collected"], counts["recovered"], counts["copied"]) == (1, 1, 1)
    after = shared.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    (path,) = hostile.collected()
    assert (hostile.volume.collected / path).stat().st_ino != after.st_ino
    assert hostile.volume.claims() == [] and hostile.volume.staged() == []


def test_a_file_whose_directory_is_closed_to_a_plain_user_stops_nothing(hostile: Scene) -> None:
    closed = hostile.directory("c2/results")
    hostile.write(closed / "a.json")
    unreadable = hostile.write(hostile.results / "unreadable.json", mode=0o600)
    hostile.write(hostile.results / "good.json")
    closed.chmod(0o644)
    counts = hostile.collect()
    if hostile.user == 0:
        assert (counts["collected"], counts["failed"]) == (3, 0)
        return
    assert (counts["collected"], counts["failed"]) == (1, 2)
    assert unreadable.exists()
    closed.chmod(0o777)
    unreadable.chmod(0o644)
    assert hostile.collect()["collected"] == 2


def test_a_lease_of_the_writers_own_does_not_stop_the_sidecar(hostile: Scene) -> None:
    """With a write lease on its file a writer makes open(2) wait, unless that says it will not."""
    path = hostile.write(hostile.results / "a.json")
    hostile.write(hostile.results / "good.json")
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        counts = hostile.collect()
        assert counts["collected"] == 1 and counts["failed"] + counts["writing"] == 1
    finally:
        os.close(fd)
    assert hostile.collect()["collected"] == 1


def test_set_user_id_does_not_reach_the_destination(hostile: Scene) -> None:
    hostile.write(hostile.results / "a", mode=0o6777)
    os.chmod(hostile.write(hostile.results / "b"), 0o4777)
    os.chown(hostile.results / "b", hostile.user, hostile.user)
    os.chmod(hostile.results / "b", 0o4777)
    hostile.collect()
    assert len(hostile.collected()) == 2
    for path in hostile.collected():
        assert (hostile.volume.collected / path).stat().st_mode & 0o7000 == 0


def test_the_sidecars_own_files_by_another_name(hostile: Scene) -> None:
    """Who runs as the sidecar's user can link them; the locks still lock."""
    hostile.collect()
    for number, own in enumerate(["movers/0.lock", "id"]):
        os.link(hostile.volume.spool / ".sharedvol" / own, hostile.results / f"{number}")
    hostile.collect(passes=2)
    assert hostile.collect()["failed"] == 0
    hostile.write(hostile.results / "good.json")
    hostile.collect()
    assert "content" in hostile.collected().values()


@pytest.mark.parametrize("day", ["0", "9999999", "x", ""])
def test_a_claim_of_no_day_stops_nothing(hostile: Scene, day: str) -> None:
    hostile.collect()

    def plant() -> None:
        claims = hostile.volume.spool / ".sharedvol" / "claims" / "0" / f"b.{day}" / "c1" / "results"
        claims.mkdir(parents=True)
        (claims / "a.json").write_text("claimed")

    hostile.run(plant)
    hostile.write(hostile.results / "good.json")
    assert hostile.collect()["collected"] == 2
    assert sorted(hostile.collected().values()) == ["claimed", "content"]


def test_a_followed_log_in_the_deepest_directory_with_the_longest_names(hostile: Scene) -> None:
    """What is kept of it is then longer than a path can be."""
    fd = os.open(hostile.logs, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("\x1b" * 255, dir_fd=fd)
        os.chmod("\x1b" * 255, 0o777, dir_fd=fd)
        below = os.open("\x1b" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    log = os.open("app.log", os.O_RDWR | os.O_CREAT, 0o666, dir_fd=fd)
    os.fchown(log, hostile.user, hostile.user)
    os.write(log, b"one\n")
    try:
        assert hostile.collect()["followed"] == 4
        os.write(log, b"two\n")
        assert hostile.collect()["followed"] == 4
    finally:
        os.close(log)
        os.close(fd)
    counts = hostile.collect()
    assert (counts["collected"], counts["sealed"]) == (1, 1)


def test_cut_again_and_again_while_it_is_followed(hostile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile.write(hostile.logs / "app.log", "begin\n")
    real = LogCopier.copy

    def cut(self: LiveCopies, *args: Any) -> int:
        os.truncate(path, 0)
        path.write_text("next\n")
        return real(self, *args)

    def work() -> int:
        writer = os.open(path, os.O_WRONLY | os.O_APPEND)
        monkeypatch.setattr(LogCopier, "copy", cut)
        collector = hostile.volume.collector()
        for _ in range(5):
            collector.run_pass()
        os.close(writer)
        monkeypatch.undo()
        for _ in range(2):
            collector.run_pass()
        collector.close()
        return 1

    hostile.run(work)
    assert set(hostile.collected().values()) <= {"begin\n", "next\n", ""}


def _owner(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_uid, info.st_gid, info.st_mode & 0o7777


def test_hard_link_is_never_given_the_configured_owner(hostile: Scene) -> None:
    theirs = hostile.write(hostile.stash / "theirs", "shared", mode=0o644)
    os.link(theirs, hostile.results / "a.json")
    changes = {"uid": 1234, "gid": 1234} if hostile.user == 0 else {}
    assert hostile.collect(file_mode=0o600, **changes)["collected"] == 1
    assert _owner(theirs) == (WRITER, WRITER, 0o644)
    hostile.assert_kept()


def test_another_users_file_gets_the_mode_that_is_set_and_stops_nothing(hostile: Scene) -> None:
    """A plain user may link a file that everybody can write, but not change its mode: it is copied."""
    hostile.write(hostile.results / "a.json", mode=0o666)
    assert hostile.collect(file_mode=0o640)["collected"] == 1
    assert hostile.volume.claims() == []
    (path,) = hostile.collected()
    assert _owner(hostile.volume.collected / path)[2] == 0o640
