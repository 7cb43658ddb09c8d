"""A join that is killed or observed at any of its steps blocks no other process and shows no wrong state."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child

from sharedvol import Volume

CALLS = ["mkdir", "chmod", "fchmod", "rename", "link", "unlink", "rmdir", "fsync", "open", "close"]
OTHER_USER = 1000

Step = Callable[[], object]


def before_each_step(before: Step, after: Step = lambda: None) -> None:
    """Run something around each system call of this process that changes anything."""

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            before()
            try:
                return call(*args, **options)
            finally:
                after()

        return called

    for name in CALLS:
        setattr(os, name, around(getattr(os, name)))
    fcntl.flock = around(fcntl.flock)
    fcntl.fcntl = around(fcntl.fcntl)


def join_and_die(path: Path, number: int, *, after: bool) -> bool:
    """Join as c1 in a child that is killed around its ``number``-th step; False if it had no such step."""

    def work(_: Connection) -> None:
        left = number

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)

        def die() -> None:
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        volume = Volume(path)
        before_each_step(count, die)
        volume.join("c1")

    child = Child(work)
    status = child.wait()
    child.kill()  # reaped already: tells the ``with`` that its status is no failure
    with child:
        pass
    assert status in (0, -signal.SIGKILL)
    return status != 0


def slot_of(path: Path, name: str, user: int = 0) -> int:
    """Return the slot that another process gets, as another ``user`` if one is given."""

    def work(connection: Connection) -> None:
        os.umask(0o077)
        if user:
            os.setresuid(user, user, user)
        connection.send(Volume(path, timeout=20).join(name).slot)

    with Child(work) as child:
        slot: int = child.receive()
        return slot


@contextmanager
def scene(kind: str) -> Iterator[tuple[Path, int]]:
    """A volume, and the slot that a new c1 is to get there."""
    path = Path(tempfile.mkdtemp())
    os.chmod(path, 0o777)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, path)
        expected = 0
        if kind != "first join ever":
            other = stack.enter_context(Volume(path).join("c0"))
            assert other.slot == 0
            expected = 1
        if kind == "the name of a dead one":
            beside = Volume(path).join("c9")
            Volume(path).join("c1").leave()
            beside.leave()
        if kind == "next to a worker":
            stack.enter_context(Volume(path).join("c1"))
        yield path, expected


@pytest.mark.parametrize("next_user", [0, OTHER_USER])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["first join ever", "a new name", "the name of a dead one", "next to a worker"])
def test_a_join_killed_at_any_step_leaves_nothing_in_the_way(kind: str, after: bool, next_user: int) -> None:
    if next_user and os.geteuid():
        pytest.skip("needs root to become another user")
    number = 0
    while True:
        with scene(kind) as (path, expected):
            killed = join_and_die(path, number, after=after)
            alive = {one.name: one.slot for one in Volume(path).replicas() if one.alive}
            others = {"c0": 0} if expected else {}
            if kind == "next to a worker":
                others["c1"] = 1
            assert alive == others, f"step {number}"
            assert Volume(path).slots() == sorted(others.values()), f"step {number}"
            assert slot_of(path, "c2", next_user) == len(others), f"step {number}"
            assert slot_of(path, "c1") == expected, f"step {number}"
            left = [name for name in os.listdir(path / ".replicas/names") if name.startswith(".")]
            if next_user == 0:  # another user may not remove it
                left += [name for name in os.listdir(path) if name != ".replicas"]
            assert left == [], f"step {number}"
            if not killed:
                break
        number += 1
    assert number > (10 if kind == "next to a worker" else 25)


def test_at_every_step_whoever_is_alive_has_its_own_slot() -> None:
    """c1 had slot 2 in another life, and gets slot 1 in this one."""
    with scene("the name of a dead one") as (path, _):

        def work(connection: Connection) -> None:
            def pause() -> None:
                connection.send("step")
                connection.recv()

            volume = Volume(path)
            before_each_step(pause)
            volume.join("c1")
            connection.send("joined")
            connection.recv()

        seen = []
        with Child(work) as child:
            while child.receive() == "step":
                seen.append(look(path))
                child.send("continue")
            seen.append(look(path))
            assert seen[0] == (False, 2)
            assert seen[-1] == (True, 1)
            assert {state for state in seen if state[0]} == {(True, 1)}
            assert len(seen) > 20
            child.kill()
        assert look(path) == (False, 1)


def look(path: Path) -> tuple[bool, int | None]:
    (found,) = [one for one in Volume(path).replicas() if one.name == "c1"]
    return found.alive, found.slot


def test_a_looker_takes_no_lock() -> None:
    """Otherwise it could make the try of another process fail."""
    with scene("next to a worker") as (path, _):

        def work(connection: Connection) -> None:
            commands: list[int] = []

            def note(fd: int, command: int, *rest: Any) -> Any:
                commands.append(command)
                return real(fd, command, *rest)

            def refuse(*_: Any) -> None:
                raise AssertionError("took a lock")

            real, fcntl.fcntl, fcntl.flock = fcntl.fcntl, note, refuse  # type: ignore
            volume = Volume(path)
            volume.replicas(), volume.slots(), volume.is_alive("c1")
            connection.send(commands)

        with Child(work) as child:
            commands = child.receive()
        assert len(commands) >= 5
        assert set(commands) == {fcntl.F_OFD_GETLK}
