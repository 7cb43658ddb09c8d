"""Locks on a network file system: two replicas get one at once, so the library warns, or refuses where it is strict."""

from __future__ import annotations

import asyncio
import ctypes
import io
import json
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.doctor.doctor_scenes import mount_lying
from support.processes import LIMIT, Child, run_forked
from support.torture.filesystems import mount
from support.torture.isolated import NotHere, isolated, libc

from sharedvol import (
    FileLock,
    NetworkFileSystemError,
    NetworkFileSystemWarning,
    Semaphore,
    Volume,
    cli,
    open_lock,
    remove_stale_temporaries,
    stale_temporaries,
)
from sharedvol.cache import Cache
from sharedvol.logs import ReplicaFileHandler
from sharedvol.mounts import is_network
from sharedvol_sidecar import cli as sidecar
from sharedvol_sidecar.commands import collect as collect_commands  # noqa: F401 # once for all children
from sharedvol_sidecar.commands import config as config_commands  # noqa: F401 # once for all

NETWORK = "nfs nfs4 cifs smb3 9p ceph glusterfs lustre virtiofs fakeowner vboxsf fuse fuse.sshfs fuse.glusterfs".split()
LOCAL = "ext4 xfs btrfs zfs tmpfs ramfs overlay fuse.fuse-overlayfs fuseblk fusectl vfat newfs".split()

SIDECAR = ("once", "check", "rebuild", "ls", "verify", "prune")

Door = Callable[[Path, dict[str, Any]], object]


async def _acquire_async(directory: Path, options: dict[str, Any]) -> None:
    async with FileLock(directory / "x.lock", **options):
        pass


def _enter(lock: Any) -> None:
    with lock:
        pass


DOORS: dict[str, Door] = {
    "FileLock": lambda directory, options: _enter(FileLock(directory / "x.lock", **options)),
    "fenced": lambda directory, options: _enter(FileLock(directory / "x.lock", fenced=True, **options)),
    "shared": lambda directory, options: _enter(FileLock(directory / "x.lock", shared=True, **options)),
    "async": lambda directory, options: asyncio.run(_acquire_async(directory, options)),
    "open_lock": lambda directory, options: _enter(open_lock(f"file://{directory}/x.lock", **options)),
    "Semaphore": lambda directory, options: _enter(Semaphore(directory / "render", 2, **options)),
    "join": lambda directory, options: Volume(directory, **options).join("a"),
    "replicas": lambda directory, options: Volume(directory, **options).replicas(),
    "Cache": lambda directory, options: Cache(directory / "cache", version="1", **options).get("key", lambda: 1),
    "log": lambda directory, options: ReplicaFileHandler(directory / "{container}" / "logs", **options).close(),
    "log of the volume": lambda directory, options: ReplicaFileHandler(directory, **options).close(),
    "stale": lambda directory, options: list(stale_temporaries(directory, **options)),
    "remove stale": lambda directory, options: remove_stale_temporaries(directory, **options),
}


def tried(door: Door, directory: Path, options: dict[str, Any], strict: str = "") -> list[str]:
    """In a forked child: the texts of the warnings, or of the error, that one use gives."""

    def use() -> list[str]:
        os.environ["SHAREDVOL_STRICT"] = strict
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                door(directory, options)
            except NetworkFileSystemError as error:
                return [f"error: {error}"]
        return [f"{one.category.__name__}: {one.message}" for one in caught]

    found: list[str] = run_forked(use)
    return found


def told(code: Callable[[], object]) -> list[str]:
    """The warnings of some code, each with the file that it is put down to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code()
    return [f"{Path(one.filename).name}: {one.message}" for one in caught if one.category is NetworkFileSystemWarning]


def command(main: Callable[[list[str]], object], *arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a command, run in a forked child."""

    def run() -> tuple[int, str]:
        for name in [name for name in os.environ if name.startswith("SHAREDVOL_")]:
            del os.environ[name]
        os.environ.update(environment)
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        code: object = 0
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as end:
            code = end.code
        return int(str(code or 0)), sys.stderr.getvalue()

    found: tuple[int, str] = run_forked(run)
    return found


def pretend(path: Path, kind: str) -> None:
    """In an isolated process: mount a tmpfs which mountinfo says is of another kind."""
    path.mkdir(exist_ok=True)
    mount("tmpfs", path, "tmpfs")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    changed = [line.replace(" - tmpfs ", f" - {kind} ") if f" {path} " in line else line for line in lines]
    assert changed != lines
    fed = path.with_name(f"{path.name}.mountinfo")
    fed.write_text("\n".join([*changed, ""]))
    target = f"/proc/{os.getpid()}/mountinfo".encode()
    if libc.mount(os.fsencode(fed), target, b"none", ctypes.c_ulong(0x1000), None) != 0:  # MS_BIND
        raise NotHere(f"mountinfo cannot be replaced: {os.strerror(ctypes.get_errno())}")


@pytest.mark.parametrize("kind", NETWORK)
def test_kinds_of_network_file_systems(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", LOCAL)
def test_kinds_of_local_file_systems(kind: str) -> None:
    assert not is_network(kind)


@pytest.mark.parametrize("name", DOORS)
def test_a_local_file_system_is_accepted(name: str, tmp_path: Path) -> None:
    assert tried(DOORS[name], tmp_path, {"strict": True}) == []


@pytest.mark.parametrize("make", [FileLock, lambda path, **options: Semaphore(path, 1, **options), Volume])
def test_to_accept_and_to_refuse_is_a_mistake(make: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_network and strict"):
        make(tmp_path / "x", allow_network=True, strict=True)


def test_two_mounts_of_one_directory_get_one_lock_at_once_with_a_warning_each(tmp_path: Path) -> None:
    def work() -> tuple[bool, int, list[str]]:
        back = tmp_path / "back"
        back.mkdir()
        fronts = [mount_lying(back, tmp_path / name, "honest", 0.0, "nfs") for name in ("one", "two")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            locks = [FileLock(front / "x.lock", timeout=0) for front in fronts]
            for lock in locks:
                lock.acquire()
            both = all(lock.held for lock in locks)
            mine = Volume(fronts[0]).join("same")
            with Child(lambda connection: connection.send(Volume(fronts[1]).join("same").name)) as child:
                names = {mine.name, child.receive()}
        return both, len(names), [str(one.message) for one in caught]

    both, names, found = isolated(work, LIMIT)
    assert both  # what the warning is about
    assert names == 1
    assert len(found) == 2
    for name, text in zip(("one", "two"), found, strict=True):
        assert f"is on fuse.nfs (mounted at '{tmp_path / name}')" in text
        assert f"`sharedvol doctor {tmp_path / name} --peer NAME`" in text
        assert "open_lock" in text
        assert "allow_network=True" in text
        assert "\n" not in text


def test_every_use_of_locks_warns_refuses_or_is_silent(tmp_path: Path) -> None:
    modes: dict[str, tuple[dict[str, Any], str]] = {
        "warns": ({}, ""),
        "warns, as the code says": ({"strict": False}, "1"),
        "refuses": ({"strict": True}, ""),
        "refuses, as the environment says": ({}, "1"),
        "is silent": ({"allow_network": True}, "1"),
    }

    def work() -> dict[tuple[str, str], list[str]]:
        (tmp_path / "back").mkdir()
        front = mount_lying(tmp_path / "back", tmp_path / "front", "honest", 0.0, "nfs")
        return {(name, mode): tried(door, front, *how) for name, door in DOORS.items() for mode, how in modes.items()}

    for (name, mode), found in isolated(work, LIMIT).items():
        begin = {"warns": "NetworkFileSystemWarning: ", "refuses": "error: "}.get(mode.partition(",")[0])
        assert len(found) == (begin is not None), (name, mode, found)
        assert all(text.startswith(begin or "") for text in found), (name, mode, found)


def test_a_mount_is_warned_of_once_and_the_next_one_at_its_place_anew(tmp_path: Path) -> None:
    def work() -> list[list[str]]:
        shared = tmp_path / "shared"
        pretend(shared, "nfs4")
        found = [told(lambda: DOORS["FileLock"](shared, {})), told(lambda: DOORS["join"](shared, {}))]
        libc.umount2(f"/proc/{os.getpid()}/mountinfo".encode(), 0)
        libc.umount2(os.fsencode(shared), 2)  # MNT_DETACH
        mount("tmpfs", shared, "tmpfs")
        found.append(told(lambda: DOORS["Cache"](shared, {"strict": True})))
        libc.umount2(os.fsencode(shared), 2)
        pretend(shared, "cifs")
        found.append(told(lambda: DOORS["Semaphore"](shared, {})))
        return found

    first, again, local, next_one = isolated(work, LIMIT)
    assert len(first) == len(next_one) == 1
    assert first[0].startswith(f"{Path(__file__).name}: lock ")  # put down to the code that uses the library
    assert "is on nfs4" in first[0]
    assert again == local == []
    assert "is on cifs" in next_one[0]


def test_a_desktops_bind_mount_has_its_own_advice(tmp_path: Path) -> None:
    def work() -> list[str]:
        pretend(tmp_path / "shared", "fakeowner")
        return told(lambda: DOORS["join"](tmp_path / "shared", {}))

    (text,) = isolated(work, LIMIT)
    assert "a named volume" in text


def test_where_warnings_are_errors_each_use_fails_and_leaves_nothing_open(tmp_path: Path) -> None:
    def work() -> tuple[int, int]:
        pretend(tmp_path / "shared", "nfs4")
        failed, before = 0, len(os.listdir("/proc/self/fd"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                for door in DOORS.values():
                    try:
                        door(tmp_path / "shared", {})
                    except NetworkFileSystemWarning:
                        failed += 1
        return failed, len(os.listdir("/proc/self/fd")) - before

    assert isolated(work, LIMIT) == (2 * len(DOORS), 0)


def test_the_mounts_are_read_once_whatever_is_locked(tmp_path: Path) -> None:
    def work() -> int:
        opened: list[str] = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        for number in range(50):
            for lock in (FileLock(tmp_path / f"{number}.lock", allow_network=False),) * 3:
                _enter(lock)
        return sum(path.endswith("mountinfo") for path in opened)

    assert run_forked(work) <= 1


def test_a_lock_that_is_sent_to_another_process_keeps_what_it_was_told(tmp_path: Path) -> None:
    def work() -> list[list[str]]:
        shared = tmp_path / "shared"
        pretend(shared, "nfs4")
        accepting = [FileLock(shared / "x", allow_network=True), Semaphore(shared / "y", 1, allow_network=True)]
        strict = [FileLock(shared / "x", strict=True), Semaphore(shared / "y", 1, strict=True)]
        for lock in strict:
            with pytest.raises(NetworkFileSystemError):
                _enter(pickle.loads(pickle.dumps(lock)))
        with pytest.raises(NetworkFileSystemError):
            pickle.loads(pickle.dumps(Volume(shared, strict=True))).replicas()
        silent = [told(lambda lock=lock: _enter(pickle.loads(pickle.dumps(lock)))) for lock in accepting]
        silent.append(told(pickle.loads(pickle.dumps(Volume(shared, allow_network=True))).replicas))
        return silent

    assert isolated(work, LIMIT) == [[], [], []]


def test_commands_say_it_in_one_line(tmp_path: Path) -> None:
    def work() -> dict[str, tuple[int, str]]:
        (tmp_path / "back").mkdir()
        front = mount_lying(tmp_path / "back", tmp_path / "front", "honest", 0.0, "nfs")
        for name in ("spool/c/results", "collected"):
            (front / name).mkdir(parents=True)
        (tmp_path / "local").mkdir()
        lock = (cli.main, "lock", front / "x.lock")
        once = (sidecar.main, "once", "--quiet", "0", "--from", front / "spool", "--to", front / "collected")
        check = (sidecar.main, "config", "check", *once[4:])
        to = ("--to", front / "collected")
        catalog = {name: (sidecar.main, name, *to) for name in ("rebuild", "ls", "verify")}
        catalog["prune"] = (sidecar.main, "prune", *to, "--keep", "results=1d", "--apply")
        (front / "sidecar.toml").write_text("allow_network = true\n")
        return {
            "lock": command(*lock, "--", "true"),
            "lock, strict": command(*lock, "--", "true", SHAREDVOL_STRICT="1"),
            "lock, silent": command(*lock, "--allow-network", "--", "true", SHAREDVOL_STRICT="1"),
            "status": command(cli.main, "status", front, SHAREDVOL_STRICT="1"),
            "once": command(*once),
            "once, strict": command(*once, SHAREDVOL_STRICT="1"),
            "once, silent": command(*once, SHAREDVOL_STRICT="1", SHAREDVOL_ALLOW_NETWORK="1"),
            "check": command(*check),
            "check, strict": command(*check, "--strict", "true"),
            **{name: command(*words) for name, words in catalog.items()},
            **{f"{name}, strict": command(*words, SHAREDVOL_STRICT="1") for name, words in catalog.items()},
            **{f"{name}, silent": command(*words, "--allow-network", "true") for name, words in catalog.items()},
            "ls, silent by the file": command(*catalog["ls"], "--config", front / "sidecar.toml", SHAREDVOL_STRICT="1"),
            "ls, other catalog": command(
                sidecar.main, "rebuild", "--to", tmp_path / "local", "--catalog", f"sqlite:///{front}/other.db"
            ),
        }

    found = isolated(work, LIMIT)
    assert {name: code for name, (code, _) in found.items()} == {
        **dict.fromkeys(found, 0),
        "lock, strict": 74,
        **dict.fromkeys((f"{name}, strict" for name in SIDECAR), 2),
    }
    for name, (_, said) in found.items():
        assert said.count("\n") == ("silent" not in name), (name, said)
        assert "silent" in name or "is on fuse.nfs" in said, (name, said)
        assert ("--allow-network" in said) == (name.startswith(SIDECAR) and "silent" not in name)


def test_the_service_logs_it_and_shows_it_on_its_status_page(tmp_path: Path) -> None:
    def work() -> tuple[list[dict[str, Any]], Any, str, Any]:
        from support.sidecar.service_process import service
        from support.sidecar.volume import Volume as Scene

        (tmp_path / "back").mkdir()
        front = mount_lying(tmp_path / "back", tmp_path / "front", "honest", 0.0, "nfs")
        scene = Scene(front / "spool", front / "collected")
        with service(scene) as served:
            served.await_ready()
            answers = [served.ask(path)[1] for path in ("/status.json", "/", "/readyz")]
            logged = [line for line in served.seen if line["event"] == "network_file_system"]
            served.end()
        return logged, json.loads(answers[0]), answers[1], json.loads(answers[2])

    logged, status, page, ready = isolated(work, LIMIT)
    (line,) = logged
    assert line["level"] == "warning"
    assert "is on fuse.nfs" in line["detail"]
    (warning,) = status["warnings"]
    assert warning["reason"] == "network_file_system"
    assert "is on fuse.nfs" in page
    assert [note["note"] for note in ready["notes"]] == ["network_file_system"]
