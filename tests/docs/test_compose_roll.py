"""docs/examples/compose/roll with an engine that is played: one by one, the new one first, back where that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROLL = Path(__file__).parents[2] / "docs" / "examples" / "compose" / "roll"
DOCKER = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path

place = Path(os.environ["ENGINE"])
engine = json.loads(place.read_text())
replicas, words = engine["replicas"], sys.argv[1:]
if words[:3] == ["compose", "ps", "-q"]:
    print("\\n".join(replicas))
elif words[:2] == ["compose", "up"]:
    assert "--no-recreate" in words and words[-1] == "api"
    wanted = int(next(word for word in words if word.startswith("api=")).partition("=")[2])
    while len(replicas) < wanted:
        engine["made"] += 1
        replicas.append("new%d" % engine["made"])
elif words[0] == "inspect":
    print("starting" if words[-1] in engine["sick"] else engine["well"])
elif words[0] == "stop":
    engine["events"].append(["stop", words[-1], len(replicas)])
elif words[0] == "rm":
    replicas.remove(words[-1])
elif words[0] == "logs":
    print("log of", words[-1])
else:
    sys.exit("what is " + words[0])
place.write_text(json.dumps(engine))
"""


class Played:
    """An engine in a file."""

    def __init__(self, place: Path, *replicas: str, sick: tuple[str, ...] = (), well: str = "healthy") -> None:
        self._state = place / "engine.json"
        state = {"replicas": replicas, "sick": sick, "well": well, "events": [], "made": 0}
        self._state.write_text(json.dumps(state))
        (place / "docker").write_text(DOCKER)
        (place / "docker").chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "ENGINE": str(self._state)}

    def roll(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(ROLL), *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60)

    @property
    def replicas(self) -> list[str]:
        return list(json.loads(self._state.read_text())["replicas"])

    @property
    def events(self) -> list[list[object]]:
        return list(json.loads(self._state.read_text())["events"])


@pytest.mark.parametrize("well", ["healthy", "running"])
def test_each_is_replaced_and_the_new_one_is_there_first(tmp_path: Path, well: str) -> None:
    engine = Played(tmp_path, "a", "b", well=well)
    done = engine.roll("api")
    assert done.returncode == 0, done.stderr
    assert engine.replicas == ["new1", "new2"]
    assert engine.events == [["stop", "a", 3], ["stop", "b", 3]]
    assert done.stdout.splitlines() == ["roll: replaced 1 of 2", "roll: replaced 2 of 2"]


def test_a_new_one_that_is_not_healthy_goes_and_the_others_stay(tmp_path: Path) -> None:
    engine = Played(tmp_path, "a", "b", sick=("new1",))
    done = engine.roll("api", "1")
    assert done.returncode == 1
    assert engine.replicas == ["a", "b"]
    assert "new1 did not become healthy in 1 seconds: removed" in done.stderr
    assert "log of new1" in done.stderr


def test_a_service_without_a_replica_is_told(tmp_path: Path) -> None:
    done = Played(tmp_path).roll("api")
    assert done.returncode == 1
    assert "api has no replica that runs" in done.stderr


def test_without_a_service_the_usage_is_told(tmp_path: Path) -> None:
    done = Played(tmp_path).roll()
    assert (done.returncode, done.stderr) == (2, "usage: roll SERVICE [SECONDS]\n")


def test_none_is_stopped_while_one_that_stays_is_not_healthy(tmp_path: Path) -> None:
    engine = Played(tmp_path, "a", "b", sick=("b",))
    done = engine.roll("api", "1")
    assert done.returncode == 1
    assert engine.events == [] and engine.replicas == ["a", "b", "new1"]
    assert "b stays, and is not healthy" in done.stderr and "a was not stopped" in done.stderr
