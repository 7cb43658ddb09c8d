"""Processes of the release before and of this one share locks, permits, names, caches and logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import blocked, wait_until
from support.soak.releases import Release
from support.upgrade.release_agent import Agent, AgentError

Pair = tuple[Release, Release]
Start = Callable[..., Agent]


def test_the_two_are_different_releases(releases: dict[str, Release], start: Start) -> None:
    """A test of a release against itself would show nothing."""
    places = [
        start(release).run(
            "import sharedvol, sharedvol_sidecar; result = sharedvol.__file__, sharedvol_sidecar.__file__"
        )
        for release in releases.values()
    ]
    assert len({Path(path).resolve() for found in places for path in found}) == 4


def test_a_lock_excludes_both_releases_and_names_its_holder(tmp_path: Path, pair: Pair, start: Start) -> None:
    first, second = map(start, pair)
    path = tmp_path / "a.lock"
    first.run(
        "from sharedvol import FileLock; lock = FileLock(path, fenced=True, purpose='index'); lock.acquire()", path=path
    )
    with pytest.raises(AgentError, match=r"^LockTimeout"):
        second.run("from sharedvol import FileLock; FileLock(path, fenced=True).acquire(timeout=0)", path=path)
    held = second.run("found = FileLock(path).holder(); result = found.purpose", path=path)
    assert held == "index"
    token = first.run("result = lock.token")
    first.kill()
    again = second.run("with FileLock(path, fenced=True) as lock: result = lock.token", path=path)
    assert again > token


def test_fencing_tokens_grow_across_releases(tmp_path: Path, pair: Pair, start: Start) -> None:
    agents = [start(release) for release in pair]
    code = "from sharedvol import FileLock\nwith FileLock(path, fenced=True) as lock: result = lock.token"
    tokens = [agents[number % 2].run(code, path=tmp_path / "a.lock") for number in range(40)]
    tokens += [start(pair[number % 2]).run(code, path=tmp_path / "a.lock") for number in range(4)]
    assert tokens == sorted(set(tokens))


def test_permits_are_shared(tmp_path: Path, pair: Pair, start: Start) -> None:
    first, second, third = start(pair[0]), start(pair[1]), start(pair[0])
    take = "from sharedvol import Semaphore\npermits = Semaphore(path, 2)\npermits.acquire(timeout=0)"
    first.run(take, path=tmp_path / "permits")
    second.run(take, path=tmp_path / "permits")
    with pytest.raises(AgentError, match=r"^LockTimeout"):
        third.run(take, path=tmp_path / "permits")
    second.kill()
    third.run(take, path=tmp_path / "permits")


def test_replicas_of_both_releases_see_each_other(tmp_path: Path, pair: Pair, start: Start) -> None:
    join = "from sharedvol import Volume; volume = Volume(path); result = volume.join().slot"
    first, second = start(pair[0], HOSTNAME="one"), start(pair[1], HOSTNAME="two")
    assert [first.run(join, path=tmp_path), second.run(join, path=tmp_path)] == [0, 1]
    look = "result = {replica.name: [replica.alive, replica.slot] for replica in volume.replicas()}"
    assert first.run(look) == second.run(look) == {"one": [True, 0], "two": [True, 1]}
    first.kill()
    assert second.run(look) == {"one": [False, 0], "two": [True, 1]}
    # Its slot is the lowest that is free.
    third = start(pair[0], HOSTNAME="three")
    assert third.run(join, path=tmp_path) == 0
    with pytest.raises(AgentError, match=r"^ReplicaAliveError"):
        second.run("volume.forget('three')")
    second.run("volume.forget('one')")
    assert sorted(third.run(look)) == ["three", "two"]


def test_a_name_that_lives_is_refused_to_the_other_release(tmp_path: Path, pair: Pair, start: Start) -> None:
    """Both processes are in one mount namespace, so the record of the first is made that of another container."""
    first, second = start(pair[0], HOSTNAME="one"), start(pair[1], HOSTNAME="one")
    first.run("from sharedvol import Volume; volume = Volume(path); volume.join()", path=tmp_path)
    record = tmp_path / ".replicas" / "names" / "one.json"
    text = record.read_text()
    namespace = Path("/proc/self/ns/mnt").stat().st_ino
    assert str(namespace) in text
    record.write_text(text.replace(str(namespace), "1"))
    with pytest.raises(AgentError, match=r"^DuplicateReplicaError"):
        second.run("from sharedvol import Volume; Volume(path).join()", path=tmp_path)


def test_an_unfinished_publication_is_stale_for_both_once_its_writer_is_dead(
    tmp_path: Path, pair: Pair, start: Start
) -> None:
    first, second = map(start, pair)
    first.run(
        "from sharedvol import publish; manager = publish(path); manager.__enter__().write('part')",
        path=tmp_path / "a.json",
    )
    stale = "from sharedvol import stale_temporaries; result = [str(found) for found in stale_temporaries(path)]"
    assert second.run(stale, path=tmp_path) == []
    first.kill()
    assert len(second.run(stale, path=tmp_path)) == 1
    second.run("from sharedvol import remove_stale_temporaries; remove_stale_temporaries(path)", path=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_published_files_are_never_replaced_by_the_other_release(tmp_path: Path, pair: Pair, start: Start) -> None:
    write = "from sharedvol import publish\nwith publish(path) as file: file.write(text)"
    start(pair[0]).run(write, path=tmp_path / "a", text="first")
    with pytest.raises(AgentError, match=r"^AlreadyPublishedError"):
        start(pair[1]).run(write, path=tmp_path / "a", text="second")
    assert (tmp_path / "a").read_text() == "first"


CACHE = """
import threading
from sharedvol.cache import Cache
cache = Cache(path, version=version)
computed = []
def compute(value="x"):
    computed.append(value)
    return {"by": value}
"""


SLOW = """
def slow():
    open(fifo).read()
    return compute("first")
result = cache.get("key", slow)
"""


def open_when_read(fifo: Path) -> int:
    """A descriptor to write to a FIFO, once another process reads it."""
    found: list[int] = []

    def opened() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    wait_until(opened, f"{fifo} to be read")
    return found[0]


def blocked_below(directory: Path) -> int:
    """How many processes wait in the kernel for a lock of a file below a directory."""
    return sum(blocked(path) for path in directory.rglob("*") if path.is_file())


def test_cache_entries_are_read_by_both(tmp_path: Path, pair: Pair, start: Start) -> None:
    first, second = map(start, pair)
    first.run(f"{CACHE}\nresult = cache.get('key', lambda: compute('first'))", path=tmp_path / "c", version="1")
    get = f"{CACHE}\nresult = [cache.get('key', lambda: compute('second')), computed]"
    assert second.run(get, path=tmp_path / "c", version="1") == [{"by": "first"}, []]
    assert second.run(get, path=tmp_path / "c", version="2") == [{"by": "second"}, ["second"]]


def test_a_value_is_computed_once_across_releases(tmp_path: Path, pair: Pair, start: Start) -> None:
    """The second waits for the first's computation, which ends when the test lets it."""
    first, second = map(start, pair)
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    first.send(f"{CACHE}{SLOW}", path=tmp_path / "c", version="1", fifo=fifo)
    gate = open_when_read(fifo)  # the computation has begun
    second.send(
        f"{CACHE}\nresult = [cache.get('key', lambda: compute('second')), computed]",
        path=tmp_path / "c",
        version="1",
    )
    wait_until(lambda: blocked_below(tmp_path / "c") == 1, "the second to wait for the first")
    os.close(gate)
    assert first.answer() == {"by": "first"}
    assert second.answer() == [{"by": "first"}, []]


def test_log_handlers_of_both_share_a_directory(tmp_path: Path, pair: Pair, start: Start) -> None:
    setup = """
import logging
from sharedvol.logs import ReplicaFileHandler
handler = ReplicaFileHandler(path, max_bytes=2000)
handler.setFormatter(logging.Formatter("%(message)s"))
def write(numbers):
    for number in numbers:
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, f"{name} {number:06d} {'.' * 80}", None, None))
write(range(50))
result = handler.path
"""
    first, second = start(pair[0], HOSTNAME="web"), start(pair[1], HOSTNAME="web")
    paths = [
        agent.run(setup, path=tmp_path / "logs", name=name) for agent, name in ((first, "first"), (second, "second"))
    ]
    assert paths[0] != paths[1]
    first.kill()
    first = start(pair[0], HOSTNAME="web")
    first.run(setup, path=tmp_path / "logs", name="again")
    second.run("write(range(50, 100))")
    lines = [line for path in (tmp_path / "logs").iterdir() for line in path.read_text().splitlines()]
    expected = [("first", 50), ("second", 100), ("again", 50)]
    assert sorted(lines) == sorted(f"{name} {n:06d} {'.' * 80}" for name, count in expected for n in range(count))
