"""One writer takes no time, space, descriptors or names from the others."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from support.sidecar.hostile import Scene, scene
from support.sidecar.volume import CLI

import sharedvol_sidecar.commands.catalog
import sharedvol_sidecar.commands.collect  # noqa: F401
from sharedvol_sidecar.fs.inode import identity


@pytest.fixture(params=[0, 1000], ids=["root", "plain user"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param) as made:
        yield made


# One call makes a file of 8 TiB that holds nothing: to read it for its digest would take hours.
def test_a_sparse_file_does_not_hold_up_the_others(hostile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile.write(hostile.results / "sparse", "")
    os.truncate(path, 2**43)
    os.chown(path, hostile.user, hostile.user)
    hostile.write(hostile.results / "good.json")
    _stop_after(monkeypatch, "pread", 2, 2**31)
    hostile.collect()


# The same with a log that stays open: the hole stays a hole, and fills no disk.
def test_a_sparse_log_does_not_fill_the_destination(hostile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile.write(hostile.logs / "sparse.log", "begin")
    os.chown(path, hostile.user, hostile.user)
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 2**43)
    hostile.write(hostile.results / "good.json")
    _stop_after(monkeypatch, "sendfile", 4, 2**26)
    hostile.collect()


# Each followed log costs descriptors for as long as it is open: those of the files that move are kept apart.
def test_many_open_logs_do_not_stop_other_containers(hostile: Scene) -> None:
    kept = []
    for number in range(300):
        path = hostile.write(hostile.logs / f"{number}.log")
        os.chown(path, hostile.user, hostile.user)
        kept.append(os.open(path, os.O_WRONLY))
    hostile.write(hostile.directory("c2/results") / "good.json", "good")

    def work() -> None:
        for fd in kept:
            os.close(fd)  # the parent has them
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
        collector = hostile.volume.collector()
        try:
            collector.run_pass()
        finally:
            collector.close()

    hostile.run(work)
    assert "good" in hostile.collected().values()


# A directory that others may write proves nobody's ownership of a hard link in it.
def test_a_secret_is_no_ones_own_in_a_directory_that_others_may_write(hostile: Scene) -> None:
    os.chown(hostile.results, hostile.user, hostile.user)
    hostile.results.chmod(0o1777)
    os.link(hostile.secret, hostile.results / "a.json")
    hostile.collect(file_mode=0o644)
    hostile.assert_kept()


# Names that end in `.live` are the followed logs' alone: neither `verify` nor `rebuild` looks at those.
def test_a_collected_file_with_a_live_name_is_rebuilt(hostile: Scene) -> None:
    hostile.write(hostile.results / "a.live")
    hostile.collect(catalog=None)
    assert "rows: 0 kept, 1 added" in _said(hostile, "rebuild")


# ... also where it is the very name that the copy of a log would have.
def test_a_collected_file_is_never_taken_for_a_live_file(hostile: Scene) -> None:
    path = hostile.write(hostile.logs / "app.log", "one\n")
    os.chown(path, hostile.user, hostile.user)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    hostile.write(hostile.logs / f"app.log~{identity(fd)}.live", "one")
    hostile.collect(follow=())
    hostile.collect()
    os.close(fd)
    hostile.collect()
    assert sorted(hostile.collected().values()) == ["one", "one\n"]
    assert "all is as it was collected" in _said(hostile, "verify")


# A directory that is moved away and back, with a followed log in it that ended meanwhile.
def test_a_followed_log_that_is_hidden_for_a_while_is_collected_once(hostile: Scene) -> None:
    path = hostile.write(hostile.logs / "app.log", "one\n")
    os.chown(path, hostile.user, hostile.user)
    hidden = hostile.logs.with_name(".hidden")

    def work() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        collector = hostile.volume.collector()
        collector.run_pass()
        os.close(fd)
        hostile.logs.rename(hidden)
        for _ in range(4):
            collector.run_pass()
        hidden.rename(hostile.logs)
        collector.run_pass()
        collector.close()

    hostile.run(work)
    assert list(hostile.collected().values()) == ["one\n"]


def _stop_after(patch: pytest.MonkeyPatch, name: str, argument: int, limit: int) -> None:
    real = getattr(os, name)
    total = [0]

    def called(*args: Any) -> Any:
        total[0] += args[1] if name == "pread" else args[3]
        assert total[0] <= limit, "does not end"
        return real(*args)

    patch.setattr(os, name, called)


def _said(hostile: Scene, command: str) -> str:
    if hostile.user:
        pytest.skip("as root")
    done = subprocess.run(
        [*CLI, command, "--to", str(hostile.volume.collected)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr
