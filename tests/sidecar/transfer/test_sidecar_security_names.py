"""Hostile names, locks and presence: what they do to catalog, terminal and log, and whose files are whose after."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, run_forked, wait_until
from support.sidecar.hostile import WRITER, Scene, become, scene

import sharedvol_sidecar.commands.catalog
import sharedvol_sidecar.commands.collect  # noqa: F401 - before a child that may not read it is forked
from sharedvol import Volume as Presence
from sharedvol import publish
from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.transfer.release import ClaimRelease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")

NAMES = [
    b"x" * 255,
    b"\xff" * 255,
    b"\xff\xfe",
    b"two\nlines",
    b"\x1b]0;owned\x07\x1b[2J",
    "\u202egnp.exe \u0085 \u2028".encode(),
    b"100% %0A %s %(x)s {name} {0}",
    b"$(touch x) `x` ; | & > * ? [",
    b"-rf",
    b"a~b.live",
    b"a.part",
    b"sharedvol",
    b"id",
    b"catalog.db",
    b" ",
    b"\\..\\..",
    b"'; DROP TABLE x; --",
]


@pytest.fixture(params=[0, 1000], ids=["root", "plain user"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param) as made:
        yield made


def _write_named(scene: Scene, name: bytes, kind: bytes = b"results") -> None:
    """A file of that name, in a directory of that name, of a container of that name."""
    directory = os.fsencode(scene.volume.spool) + b"/" + name
    path = directory
    for part in (kind, name):
        path += b"/" + part
    os.makedirs(path)
    with open(path + b"/" + name, "wb") as file:
        file.write(name)
    scene.run(lambda: None)
    subprocess.run([b"chown", b"-R", b"%d" % scene.user, b"--", directory], check=True, timeout=60)


def _inside(root: Path) -> dict[bytes, bytes]:
    found = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        if b".sharedvol" in names:
            names.remove(b".sharedvol")
        for name in files:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, os.fsencode(root))] = file.read()
    return found


def _final(name: bytes) -> bytes:
    """Where it ends; only copies of followed logs have names that end in ``.live`` there."""
    return b"/".join([name] * 3) + (b"~" if name.endswith(b".live") else b"")


def test_hostile_names_are_collected_catalogued_and_shown_without_harm(hostile: Scene) -> None:
    for name in NAMES:
        _write_named(hostile, name)
    assert hostile.collect(template="{container}/{name}")["collected"] == len(NAMES)
    assert _inside(hostile.volume.collected) == {_final(name): name for name in NAMES}

    def rows() -> list[tuple[str, str]]:
        catalog = Catalog.open("", open_root(hostile.volume.collected), create=False)
        found = [(row.path, row.container) for row in catalog.rows(Filters())]
        catalog.close()
        return found

    found = hostile.run(rows)
    assert {os.fsencode(path) for path, _ in found} == {_final(name) for name in NAMES}
    assert {os.fsencode(container) for _, container in found} == set(NAMES)
    for command in (["ls"], ["ls", "--json"], ["verify"], ["verify", "--json"], ["rebuild"]):
        text = _said(hostile, [*command, "--to", str(hostile.volume.collected)])
        assert all(letter.isprintable() or letter == "\n" for letter in text), command
        if command[0] == "ls":
            assert text.count("\n") == len(NAMES)


def _said(hostile: Scene, args: list[str]) -> str:
    """What the command prints, run to its end by the sidecar's user."""

    def work() -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                main(args)
            except SystemExit as end:
                assert not end.code, out.getvalue()
        return out.getvalue()

    said: str = hostile.run(work)
    return said


def test_a_log_line_is_one_line_of_json_whatever_the_names(hostile: Scene) -> None:
    for name in NAMES:
        _write_named(hostile, name)
        (hostile.volume.spool / os.fsdecode(name) / "results" / "link").symlink_to("x")
    directories = ["--from", str(hostile.volume.spool), "--to", str(hostile.volume.collected)]

    def work(connection: Any) -> None:
        become(hostile.user)
        with open(hostile.stash / "out", "w") as out, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(["run", *directories, "--quiet", "0", "--interval", "0.1", "--listen", "off"])

    with Child(work) as child:
        wait_until(lambda: len(_inside(hostile.volume.collected)) == len(NAMES), "all names to be collected")
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait() == 0
    lines = (hostile.stash / "out").read_bytes().decode().splitlines()
    assert len(lines) > len(NAMES)
    for line in lines:
        assert json.loads(line)["event"]
        assert line.isprintable()


def test_a_followed_log_may_have_any_name(hostile: Scene) -> None:
    logs = []
    for name in NAMES:
        _write_named(hostile, name, b"logs")
        path = b"/".join([os.fsencode(hostile.volume.spool), name, b"logs", name, name])
        logs.append(os.open(path, os.O_WRONLY | os.O_APPEND))
    try:
        assert hostile.collect(template="{container}/{name}")["followed"] == sum(map(len, NAMES))
    finally:
        for fd in logs:
            os.close(fd)
    assert hostile.collect(template="{container}/{name}")["sealed"] == len(NAMES)
    assert _inside(hostile.volume.collected) == {_final(name): name for name in NAMES}


def test_names_like_our_own_are_left(hostile: Scene) -> None:
    for name in (".sharedvol", ".replicas", ".x.sharedvol-tmp", ".a"):
        hostile.directory(f"c1/results/{name}")
        hostile.write(hostile.results / name / "a.json")
    os.mkfifo(hostile.results / ".y.sharedvol-tmp")
    (hostile.results / ".z.sharedvol-tmp").symlink_to(hostile.secret)
    hostile.write(hostile.results / ".sharedvol" / "id")
    assert hostile.collect()["collected"] == 0
    assert hostile.collected() == {}
    hostile.assert_kept()


@pytest.mark.parametrize("year", [-292e9, -(2.0**62) / 31_556_952, 292e9])
def test_a_time_of_no_calendar_stops_nothing(hostile: Scene, year: float, other_file_system: Path) -> None:
    other_file_system.chmod(0o755)
    with_times = Scene(other_file_system, hostile.user)  # tmpfs keeps such times
    moment = max(-(2**63), min(2**63 - 1, int(year * 31_556_952)))
    for directory in (with_times.results, with_times.logs):
        os.utime(with_times.write(directory / "a.json"), (moment, moment))
    with_times.write(with_times.results / "good.json")
    across = {} if hostile.user else {"compress": "gzip"}
    assert with_times.collect(quiet=0.0, seal_after=0.0, **across)["collected"] == 3


@pytest.mark.parametrize("what", ["symlink", "fifo", "file", "garbage"])
def test_what_is_put_in_the_place_of_the_presence_stops_nothing(hostile: Scene, what: str) -> None:
    replicas = hostile.volume.spool / ".replicas"
    (hostile.outside / "names").mkdir()
    (hostile.outside / "slots").mkdir()
    (hostile.outside / "names" / "c1.json").write_text('{"name": "c1"}')
    if what == "symlink":
        replicas.symlink_to(hostile.outside)
    elif what == "fifo":
        os.mkfifo(replicas)
    elif what == "file":
        replicas.write_text("x")
    else:
        hostile.run(lambda: run_forked(lambda: Presence(hostile.volume.spool).join("c2") and 1))
        names = replicas / "names"
        (names / "c1.json").write_text("garbage" * 10_000)
        os.mkfifo(names / "c1.lock")
        os.mkfifo(replicas / "slots" / "0")
        (names / "c3.json").symlink_to(hostile.secret)
        (names / "c3.lock").symlink_to(hostile.secret)
    hostile.write(hostile.results / "good.json")
    assert hostile.collect()["collected"] == 1
    assert sorted(os.listdir(hostile.outside)) == ["names", "secret", "slots"]
    assert os.listdir(hostile.outside / "names") == ["c1.json"]
    hostile.assert_kept()


@pytest.mark.parametrize("family", ["flock", "fcntl"])
def test_a_lock_on_the_gate_does_not_hold_up_the_sidecar(
    hostile: Scene, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write the volume can lock it for ever: no dead container's directory is removed then, no more."""
    monkeypatch.setattr("sharedvol.locks.file.waiter.Waiter.__init__", None)  # whoever would wait fails
    hostile.run(lambda: run_forked(lambda: Presence(hostile.volume.spool).join("c1") and 1))
    gate = os.open(hostile.volume.spool / ".replicas" / "join.lock", os.O_RDWR)
    try:
        (fcntl.flock if family == "flock" else fcntl.lockf)(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hostile.write(hostile.results / "good.json")
        assert hostile.collect(passes=1)["collected"] == 1
        assert hostile.results.exists()
    finally:
        os.close(gate)
    hostile.volume.spool.chmod(0o777)
    hostile.collect()
    assert not (hostile.volume.spool / "c1").exists()


def test_only_what_is_empty_is_removed_of_a_container_that_was_called_dead(hostile: Scene) -> None:
    """Anybody can join under the name of a container that never did, and die: nothing of it is lost."""
    hostile.run(lambda: run_forked(lambda: Presence(hostile.volume.spool).join("c1") and 1))
    for name in ("c1/other", "c1/results/.hidden"):
        hostile.write(hostile.directory(name) / ".kept")
    os.mkfifo(hostile.results / "fifo")
    (hostile.logs / "link").symlink_to(hostile.outside)
    with publish(hostile.results / "later.json") as file:  # a living writer's temporary
        hostile.collect(passes=2)
        file.write("later")
    assert (hostile.results / "later.json").read_text() == "later"
    assert (hostile.volume.spool / "c1/other/.kept").exists() and (hostile.results / ".hidden/.kept").exists()
    assert hostile.outside.exists() and (hostile.logs / "link").is_symlink()
    hostile.assert_kept()


def test_a_living_replicas_directory_stays_whoever_else_claims_its_name(hostile: Scene) -> None:
    def live(connection: Any) -> None:
        become(hostile.user)
        Presence(hostile.volume.spool).join("c1")
        connection.send("joined")
        connection.recv()

    with Child(live) as replica:
        assert replica.receive() == "joined"

        def impostor() -> str:
            become(WRITER)
            names = hostile.volume.spool / ".replicas" / "names"
            for act in (
                lambda: os.unlink(names / "c1.lock"),
                lambda: os.rename(names / "c1.lock", names / "x"),
            ):
                try:
                    act()
                except PermissionError:
                    continue
                return "succeeded"
            return "refused"

        assert run_forked(impostor) == "refused"
        hostile.collect(passes=2)
        assert hostile.results.exists()
        replica.send("end")
    hostile.volume.spool.chmod(0o777)
    hostile.collect()
    assert not (hostile.volume.spool / "c1").exists()


def _dressed(hostile: Scene) -> tuple[dict[str, Any], tuple[int, int, int]]:
    if hostile.user == 0:
        return {"uid": 1234, "gid": 1235, "file_mode": 0o640, "directory_mode": 0o750}, (1234, 1235, 0o640)
    return {"file_mode": 0o640, "directory_mode": 0o750}, (1000, 1000, 0o640)


def _owners(root: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in root.rglob("*"):
        if ".sharedvol" not in path.parts:
            info = path.stat()
            found[str(path.relative_to(root))] = (info.st_uid, info.st_gid, info.st_mode & 0o7777)
    return found


@pytest.mark.parametrize("how", ["linked", "shared", "compressed", "followed", "cut", "recovered"])
def test_owner_and_mode_are_those_that_are_set(hostile: Scene, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, wanted = _dressed(hostile)
    path = (hostile.logs if how in ("compressed", "followed", "cut") else hostile.results) / "d" / "a.json"
    hostile.directory(str(path.parent.relative_to(hostile.volume.spool)))
    hostile.write(path)
    os.chown(path, hostile.user, hostile.user)  # or a plain user gets no lease
    if how == "shared":
        os.link(path, hostile.stash / "other")
    if how in ("followed", "cut"):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        hostile.collect(**changes)
        os.ftruncate(fd, 0) if how == "cut" else os.write(fd, b"more")
        hostile.collect(**changes)
        assert all(owner in (wanted, (*wanted[:2], 0o750)) for owner in _owners(hostile.volume.collected).values())
        os.close(fd)
    if how == "recovered":

        def die() -> None:
            monkeypatch.setattr(ClaimRelease, "_confirm", lambda self, item: os._exit(9))
            hostile.volume.one_pass(**changes)

        with Child(lambda connection: (become(hostile.user), die())) as child:
            assert child._watch and child.wait() == 9
            child._killed = True
    hostile.collect(**changes, compress="gzip" if how == "compressed" else "")
    files = [found for found in hostile.volume.collected.rglob("*.json*") if found.is_file()]
    assert len(files) == (2 if how == "cut" else 1)
    if how == "compressed":
        assert gzip.decompress(files[0].read_bytes()) == b"content"
    owners = _owners(hostile.volume.collected)
    assert set(owners.values()) == {wanted, (*wanted[:2], 0o750)}
    if how == "shared":
        assert (hostile.stash / "other").stat().st_mode & 0o777 == 0o666


def test_a_file_that_is_put_back_stays_its_writers(hostile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, _ = _dressed(hostile)
    path = hostile.write(hostile.results / "a.json")
    with monkeypatch.context() as patch:
        patch.setattr(lease, "is_intact", lambda fd: False)
        patch.setattr("sharedvol_sidecar.transfer.item.Item.unchanged", lambda self: False)
        assert hostile.collect(**changes)["put_back"] == 1
    info = path.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (WRITER, WRITER, 0o666)
    assert hostile.collected() == {}


def test_an_access_list_does_not_outlive_the_change_of_owner(hostile: Scene) -> None:
    path = hostile.write(hostile.results / "a.json")
    os.chown(path, hostile.user, hostile.user)
    entries = [(1, 6, -1), (2, 6, WRITER), (4, 4, -1), (0x10, 6, -1), (0x20, 0, -1)]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    changes, wanted = _dressed(hostile)
    hostile.collect(**changes)
    (collected,) = (found for found in hostile.volume.collected.rglob("a.json") if found.is_file())
    assert os.listxattr(collected) == []
    assert collected.stat().st_mode & 0o777 == wanted[2]
