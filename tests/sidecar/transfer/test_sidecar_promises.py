"""A collected file is as promised before its final name exists: owner, mode, no list, no capability, no secret."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, has_permission_to_mount
from support.sidecar.hostile import SECRET, WRITER, Scene, scene
from support.sidecar.volume import Volume
from support.torture.filesystems import LoopFileSystem
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT

import sharedvol_sidecar.fs.content as contents
from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.release import ClaimRelease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root gives files away")

PROMISED: dict[str, Any] = {"uid": 1234, "gid": 1235, "file_mode": 0o660}
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0)  # CAP_SETUID, effective


@pytest.fixture
def hostile() -> Iterator[Scene]:
    with scene(0) as made:
        yield made


def access_list(user: int) -> bytes:
    entries = [(1, 6, -1), (2, 6, user), (4, 4, -1), (0x10, 6, -1), (0x20, 4, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, list[str]]]:
    """What each file is like at the moment when it gets a name in the destination outside our own directory."""
    seen: list[tuple[int, int, int, list[str]]] = []
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        real(source, target, **options)
        place = os.readlink(f"/proc/self/fd/{options['dst_dir_fd']}")
        if "/collected/" in place and "/.sharedvol" not in place:
            path = f"{place}/{target}"
            info = os.stat(path)
            seen.append((info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), os.listxattr(path)))

    monkeypatch.setattr(os, "link", link)
    return seen


def special(path: Path, how: str) -> None:
    """Give a file what a collected one must not have."""
    if how == "set-user-id":
        path.chmod(0o4755)
    elif how == "set-group-id":
        path.chmod(0o2755)
    elif how == "sticky":
        path.chmod(0o1755)
    elif how == "capability":
        path.chmod(0o755)
        os.setxattr(path, "security.capability", CAPABILITY)
    else:
        os.setxattr(path, "system.posix_acl_access", access_list(WRITER))


@pytest.mark.parametrize("how", ["set-user-id", "capability", "access list"])
def test_owner_and_mode_hold_when_the_name_appears(
    volume: Volume, how: str, named: list[tuple[int, int, int, list[str]]]
) -> None:
    special(volume.write("c1/results/a", "1"), how)
    volume.write("c1/results/b", "2")
    assert volume.one_pass(**PROMISED).collected == 2
    assert named == [(1234, 1235, 0o660, [])] * 2


@pytest.mark.parametrize("how", ["set-user-id", "set-group-id", "sticky", "capability"])
@pytest.mark.parametrize("catalog", ["", "sqlite:////nowhere/at/all.db"], ids=["catalog", "catalog away"])
def test_special_bits_never_reach_the_destination(
    volume: Volume, how: str, catalog: str, named: list[tuple[int, int, int, list[str]]]
) -> None:
    special(volume.write("c1/results/a", "1"), how)
    volume.one_pass(catalog=catalog)
    assert named == [(0, 0, 0o755, [])]
    volume.drain()
    assert list(volume.files().values()) == ["1"]


def test_a_file_that_is_as_promised_is_linked(volume: Volume) -> None:
    path = volume.write("c1/results/a", "1")
    path.chmod(0o660)
    os.chown(path, 1234, 1235)
    inode = path.stat().st_ino
    tally = volume.one_pass(**PROMISED)
    assert (tally.collected, tally.copied) == (1, 0)
    assert [found.stat().st_ino for found in volume.collected.rglob("a") if found.is_file()] == [inode]


@pytest.mark.parametrize("how", ["set-user-id", "capability", "access list", "owner"])
def test_what_changes_while_a_file_is_linked_is_seen_before_it_counts(
    volume: Volume, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.write("c1/results/a", "1")
    promised = PROMISED if how in ("access list", "owner") else {}
    if promised:
        path.chmod(0o660)
        os.chown(path, 1234, 1235)
    real = Linker.link
    raced: list[str] = []

    def link(self: Linker, item: Any, directory: Any, final: str) -> None:
        if not raced:
            raced.append(final)
            claim = Path(f"/proc/self/fd/{item.claim.fd}/{item.candidate.name}")
            os.chown(claim, 1, 1) if how == "owner" else special(claim, how)
        real(self, item, directory, final)

    monkeypatch.setattr(Linker, "link", link)
    collector = volume.collector(**promised)
    assert collector.run_pass().put_back == 1
    assert volume.files() == {}
    assert collector.run_pass().collected == 1
    collector.close()
    (found,) = (found for found in volume.collected.rglob("a") if found.is_file())
    assert not found.stat().st_mode & 0o7000 and os.listxattr(found) == []


@pytest.mark.parametrize("way", ["linked", "copied"])
def test_the_owner_is_changed_before_the_list_and_the_mode(
    way: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume: Volume = request.getfixturevalue("volume" if way == "linked" else "across")
    volume.write("c1/results/a", "1")
    calls: list[str] = []
    for name in ("fchown", "removexattr", "fchmod"):
        real = getattr(os, name)

        def called(*args: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            if "/staging/" in os.readlink(f"/proc/self/fd/{args[0]}"):
                calls.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, called)
    volume.one_pass(**PROMISED)
    assert calls == ["fchown", "removexattr", "fchmod"]


def test_a_list_that_the_destination_gives_to_new_files_is_removed(volume: Volume) -> None:
    for kind in ("default", "access"):
        os.setxattr(volume.collected, f"system.posix_acl_{kind}", access_list(WRITER))
    volume.write("c1/results/a", "1")
    assert volume.one_pass(**PROMISED).collected == 1
    (found,) = (found for found in volume.collected.rglob("a") if found.is_file())
    assert os.listxattr(found) == []


@pytest.mark.parametrize("how", ["plain", "set-user-id"])
def test_a_claim_that_an_older_release_linked_as_it_was_is_replaced_by_a_copy(volume: Volume, how: str) -> None:
    path = volume.write("c1/results/a", "1")
    promised = {} if how == "set-user-id" else PROMISED
    if how == "set-user-id":
        path.chmod(0o4755)

    def die(_: object) -> None:
        Linker.is_copied = lambda self, item: False  # type: ignore
        Linker.is_as_promised = lambda self, item: True  # type: ignore
        ClaimRelease._remove = lambda self, done: [list(done), os.kill(os.getpid(), 9)]  # type: ignore
        volume.one_pass(template="{name}", **promised)

    with Child(die) as child:
        assert child.wait() == -9
        child.kill()
    before = (volume.collected / "a").stat()
    assert (before.st_uid, bool(before.st_mode & 0o4000)) == (0, how == "set-user-id")
    volume.drain(template="{name}", **promised)
    after = (volume.collected / "a").stat()
    wanted = (0, 0, 0o755) if how == "set-user-id" else (1234, 1235, 0o660)
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == wanted
    assert volume.files() == {"a": "1"}
    assert [row.path for row in Catalog.open("", volume.collected).rows(Filters())] == ["a"]
    assert volume.claims() == volume.staged() == []


def test_an_owner_that_cannot_be_given_is_a_fault_and_not_of_each_file(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharedvol_sidecar.errors import DestinationError

    volume.write("c1/results/a", "1")
    volume.write("c1/results/b", "2")

    def fchown(*args: Any) -> None:
        raise PermissionError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    with pytest.raises(DestinationError, match="cannot give files the owner that is set"):
        volume.one_pass(**PROMISED)
    assert len(volume.waiting()) == 2


def test_a_secret_whose_other_name_was_removed_is_refused(hostile: Scene) -> None:
    os.link(hostile.secret, hostile.results / "a.json")
    hostile.secret.unlink()
    assert hostile.collect(file_mode=0o644)["refused"] == 1
    assert SECRET not in hostile.collected().values()
    assert "user 0" in hostile.volume.events[-1].detail if hostile.volume.events else True


def test_a_secret_in_a_log_is_not_followed_after_its_other_name_was_removed(hostile: Scene) -> None:
    os.link(hostile.secret, hostile.logs / "a.log")
    hostile.secret.unlink()
    with open(hostile.logs / "a.log", "a"):
        hostile.collect(passes=3, uid=1234, gid=1234)
    assert hostile.collected() == {}


def test_a_file_that_was_a_link_to_a_secret_stays_refused_when_its_other_name_is_removed(hostile: Scene) -> None:
    """In a directory of root's that every user may write, the file alone does not show it."""
    os.chown(hostile.results, 0, 0)
    hostile.results.chmod(0o1777)
    os.link(hostile.secret, hostile.results / "a.json")

    def work() -> int:
        collector = hostile.volume.collector(file_mode=0o644)
        collector.run_pass()
        hostile.secret.unlink()
        refused = collector.run_pass().refused
        collector.close()
        return refused

    assert hostile.run(work) == 1
    assert hostile.collected() == {}


@pytest.mark.parametrize(
    ("directory", "mode", "owner"),
    [(0, 0o755, 0), (0, 0o1777, 0), (0, 0o1777, WRITER), (0, 0o777, WRITER), (WRITER, 0o755, WRITER)],
)
def test_private_results_are_collected_with_the_mode_that_is_set(
    hostile: Scene, directory: int, mode: int, owner: int
) -> None:
    os.chown(hostile.results, directory, directory)
    hostile.results.chmod(mode)
    os.chown(hostile.write(hostile.results / "a.json", "private", mode=0o600), owner, owner)
    assert hostile.collect(file_mode=0o644)["collected"] == 1
    assert list(hostile.collected().values()) == ["private"]


@pytest.mark.skipif(not has_permission_to_mount() or shutil.which("mkfs.xfs") is None, reason="mounts XFS")
def test_a_copy_on_a_file_system_with_clones_shares_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        system = LoopFileSystem("xfs", tmp_path / "xfs")
        volume = Volume(system.path / "spool", system.path / "collected")
        volume.write("c1/results/a", "0123456789abcdef" * 131_072)
        monkeypatch.setattr(contents, "write_all", lambda fd, data: pytest.fail("was written"))
        assert volume.one_pass(**PROMISED).collected == 1
        assert list(volume.files().values()) == ["0123456789abcdef" * 131_072]
        (row,) = Catalog.open("", volume.collected).rows(Filters())
        assert row.sha256 is not None and row.size == 2 << 20

    isolated(work, LIMIT)
