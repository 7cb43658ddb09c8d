"""The rules of the lock file that only many takers show: nothing is lost, and each gets its turns."""

from __future__ import annotations

import re

from adapter import Adapter
from kernel_view import Raw, wait_blocked
from rules import Scene, rule

UPDATES = 300
"""Increments of each of four writers."""

TURNS = 200
"""Turns that two takers share. Each holds 2 ms and then stays away for 1 ms: the kernel wakes a waiter when the lock is
freed, and whoever takes it again at once, before that waiter has run, overtakes it, with any kernel lock."""

OVERTAKEN = TURNS / 4
"""How often one may be overtaken in a row."""


@rule(
    "LOCK-1",
    "No update is lost: four writers add to a number in a file, each time under the lock.",
    "lock",
    "lock",
    meeting=True,
    ordered=False,
)
def updates(scene: Scene, one: Adapter, other: Adapter) -> None:
    path, data = scene.directory / "x.lock", scene.directory / "number"
    data.write_text("0\n")
    writers = [one, other, scene.another(one), scene.another(other)]
    for writer in writers:
        writer.send("count", path, data, UPDATES)
    for writer in writers:
        assert writer.receive().word == "ok"
    assert int(data.read_text()) == len(writers) * UPDATES


@rule(
    "LOCK-4",
    "Two that take the lock again and again each get a fifth of the turns at least, and none is overtaken for long.",
    "lock queue",
    "lock queue",
    meeting=True,
    ordered=False,
)
def turns(scene: Scene, one: Adapter, other: Adapter) -> None:
    path, data = scene.directory / "x.lock", scene.directory / "marks"
    data.touch()
    with Raw(path):
        for adapter, mark in ((one, "a"), (other, "b")):
            adapter.send("turns", path, data, TURNS, mark)
        wait_blocked(path, 2)  # so both begin at one moment
    for adapter in (one, other):
        assert adapter.receive().word == "ok"
    marks = data.read_text()
    assert len(marks) == TURNS
    longest = max(len(run) for run in re.findall("a+|b+", marks))
    assert longest <= OVERTAKEN, f"one was overtaken {longest} times in a row: {marks}"
    fewest = min(marks.count("a"), marks.count("b"))
    assert fewest >= TURNS / 5, f"one had {fewest} of {TURNS} turns: {marks}"


@rule(
    "LOCK-3",
    "A user of both families excludes those of each, all at once, and nobody waits for ever.",
    "lock",
    "lock",
    "lock",
    families=("fcntl", "flock", "both"),
)
def both_and_each(scene: Scene, fcntl: Adapter, flock: Adapter, both: Adapter) -> None:
    path = scene.directory / "x.lock"
    writers = []
    for name, adapter, other in (("a", fcntl, both), ("b", flock, scene.another(both))):
        data = scene.directory / name
        data.write_text("0\n")
        for writer in (adapter, other):
            writer.send("count", path, data, UPDATES)
            writers.append(writer)
    for writer in writers:
        assert writer.receive().word == "ok"
    # Between those two nothing is excluded, so each has a number of its own.
    assert [int((scene.directory / name).read_text()) for name in "ab"] == [2 * UPDATES] * 2
