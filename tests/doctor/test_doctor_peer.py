"""Two doctors who meet over files: they agree, they are bounded, and what the other says is data."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.doctor.doctor_scenes import LIMIT, lying
from support.processes import Child, wait_until
from support.torture.isolated import isolated

from sharedvol.doctor import Finding, PeerError, meet
from sharedvol.doctor.agent.limits import PREFIX
from sharedvol.doctor.agent.warden import Warden
from sharedvol.doctor.examination import BETWEEN, run
from sharedvol.doctor.experiments.names_and_clocks import OF_PEERS
from sharedvol.doctor.experiments.testbed import TestBed
from sharedvol.doctor.peer import meeting, peer
from sharedvol.doctor.peer.follower import Follower, checked
from sharedvol.doctor.peer.remote import Remote
from sharedvol.doctor.report import ORDER
from sharedvol.doctor.side import Gone, Local

IDS = [experiment.id for experiment in OF_PEERS] + [f"peer.{experiment.id}" for experiment in BETWEEN]
A, B = "0" * 32, "f" * 32


def doctor(directory: Path, host: str, **options: Any) -> Callable[[Connection], object]:
    """What a child does that is a doctor in a container of that name: say what it found."""

    def work(connection: Connection) -> object:
        os.environ["HOSTNAME"] = host
        try:
            said: object = meet(str(directory), "test", wait=LIMIT, **options)
        except PeerError as error:
            said = str(error)
        connection.send(said)
        return None

    return work


def both(one: Path, other: Path) -> tuple[Any, Any]:
    """What two doctors find who see a volume by these paths."""
    with Child(doctor(one, "one")) as first, Child(doctor(other, "two")) as second:
        return first.receive(), second.receive()


def test_two_doctors_find_each_other_and_the_same(tmp_path: Path) -> None:
    first, second = both(tmp_path, tmp_path)
    assert first == second
    assert [finding.id for finding in first] == IDS
    assert [finding for finding in first if finding.verdict != "ok"] == []
    assert list(tmp_path.iterdir()) == []


def test_two_containers_with_two_mounts_find_out_what_these_keep_from_each_other(tmp_path: Path) -> None:
    """One mount grants every lock and passes on no event: they meet all the same."""
    chosen = ("locks.flock", "locks.both", "events.lease")

    def work() -> tuple[Any, Any, list[str]]:
        peer.BETWEEN = tuple(one for one in BETWEEN if one.id in chosen)  # type: ignore[misc]
        front = lying("grants")(tmp_path)
        first, second = both(front, tmp_path / "back")
        return first, second, os.listdir(front)

    first, second, left = isolated(work, LIMIT)
    assert first == second
    verdicts = {finding.id: finding.verdict for finding in first}
    assert {verdicts[f"peer.{id}"] for id in chosen} <= {"unsafe", "degraded"}
    assert verdicts["peer.locks.both"] == "unsafe"
    assert left == []


def test_nobody_comes_is_told_in_time(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"no second doctor came within 0\.3 s: run 'sharedvol doctor DIR --peer test'"):
        meet(str(tmp_path), "test", wait=0.3)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_doctors_greeting_is_not_answered(tmp_path: Path) -> None:
    place = tmp_path / f"{PREFIX}peer-test"
    place.mkdir()
    (place / f"hello-{A}").write_text('{"partner": "", "beat": 7}')
    with pytest.raises(PeerError, match="no second doctor came"):
        meet(str(tmp_path), "test", wait=0.5)


def test_a_directory_that_nobody_may_write_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{PREFIX}peer-test").touch()
    with pytest.raises(PeerError, match="both doctors must be allowed to write there"):
        meet(str(tmp_path), "test", wait=0.5)


def test_a_doctor_whose_partner_dies_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who lives may lead or follow."""
    monkeypatch.setattr(meeting, "SILENCE", 0.5)
    with Child(doctor(tmp_path, "one", patience=1.0)) as first:
        with Child(doctor(tmp_path, "two", patience=1.0)) as second:
            wait_until(lambda: any(tmp_path.glob(f"{PREFIX}peer-test/say-*")), "the experiments to begin")
            second.kill()
        said = first.receive()
    assert isinstance(said, str)
    assert "other doctor" in said
    wait_until(lambda: not list(tmp_path.iterdir()), "the wardens to tidy up")


class Answering:
    """A side that answers every step with the same, or with what a function says."""

    def __init__(self, says: object) -> None:
        self.says, self.step = says, ""

    def start(self, step: str, **arguments: Any) -> None:
        self.step = step

    def finish(self, patience: float | None = None) -> Any:
        return self.says(self.step) if callable(self.says) else self.says

    def waits(self, seconds: float) -> bool:
        return True

    def kill(self) -> None:
        pass

    def rest(self) -> None:
        pass


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Local]:
    (tmp_path / "room").mkdir()
    side = Local(str(tmp_path), "room", 2.0)
    yield side
    side.kill()


def who(**changes: object) -> Callable[[str], object]:
    return lambda step: {"host": "b", "uid": os.geteuid(), "gid": os.getegid(), "boot": "?", **changes}


def of_peers(ours: Local, says: object) -> dict[str, Finding]:
    bench = TestBed(ours, Answering(says), lambda: None)
    return {finding.id: finding for finding in run(bench, OF_PEERS, lambda id: None, "peer.")}


def test_two_of_one_name_are_unsafe(ours: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "b")
    assert of_peers(ours, who())["peer.identity"].verdict == "unsafe"


def test_two_users_are_degraded(ours: Local) -> None:
    assert of_peers(ours, who(uid=12345))["peer.identity"].verdict == "degraded"


def test_another_kernel_is_degraded(ours: Local) -> None:
    assert of_peers(ours, who())["peer.kernel"].verdict == "degraded"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert of_peers(ours, who(boot=boot))["peer.kernel"].verdict == "ok"


NONSENSE = (
    None,
    True,
    -1,
    10**400,
    "x" * 10**6,
    [],
    [[]] * 9,
    {},
    {"uid": [], "host": 1, "gid": 0, "": "x"},
    "\x1b",
    0,
)


@pytest.mark.parametrize("seed", range(1))
def test_no_answer_of_a_peer_breaks_an_experiment(seed: int, ours: Local) -> None:
    chance = random.Random(seed)
    bench = TestBed(ours, Answering(lambda step: chance.choice(NONSENSE)), lambda: None, pause=0.001)
    bench.slack, bench.arriving = 0.1, 0.01
    for finding in run(bench, (*OF_PEERS, *BETWEEN), lambda id: None, "peer."):
        assert finding.verdict in ORDER
        assert len(finding.detail) < 1000


class Heard:
    """A meeting of which one hears what is said."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.patience, self.token = str(directory), 1.0, B
        self.said: list[dict[str, Any]] = []

    def write(self, name: str, content: dict[str, Any]) -> None:
        self.said.append(content)


def test_a_followers_process_survives_nonsense(tmp_path: Path) -> None:
    room = f"{PREFIX}{'0' * 16}"
    (tmp_path / room).mkdir()
    heard = Heard(tmp_path)
    follower = Follower(heard, A)  # type: ignore[arg-type]
    requests: list[dict[str, Any]] = [
        {"do": "enter", "room": room},
        {"do": "open", "name": "x", "how": "create"},
        {"do": "read", "file": 1, "at": 10**30},
        {"do": "open", "step": "x", "self": 1},
        {"do": "write", "file": 1, "text": "\ud800"},
        {"do": "lock", "file": 1, "family": {}},
        {"do": "names"},
    ]
    for number, request in enumerate(requests, 1):
        follower.run(number, request)
        wait_until(lambda number=number: follower.answer_if_done() or len(heard.said) == number, "an answer")
    follower.end()
    assert ["wrong" in said for said in heard.said] == [False, False, True, True, True, True, False]
    assert heard.said[-1] == {"is": ["x"]}


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "enter", "room": "../../etc"},
        {"do": "enter", "room": "results"},
        {"do": "enter", "room": f"{PREFIX}{'0' * 16}/../.."},
        {"do": "enter", "path": "/etc", "name": "."},
        {"do": "open", "name": "x", "how": "create"},
        {"do": "kill"},
        {"do": "look"},
        {"do": ["open"], "step": 1},
        {"do": None},
        {},
    ],
    ids=str,
)
def test_a_follower_refuses_what_is_no_step_in_a_room(request_: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    heard = Heard(tmp_path)
    follower = Follower(heard, A)  # type: ignore[arg-type]
    follower.run(1, dict(request_))
    follower.end()
    assert heard.said == [{"wrong": "no such step"}]
    assert os.listdir(tmp_path / "results") == []


@pytest.mark.parametrize(
    "findings",
    [
        None,
        {},
        [7],
        [{}],
        [{"id": "peer.locks.flock", "verdict": "fine", "detail": ""}],
        [{"id": "locks.flock", "verdict": "ok", "detail": ""}],
        [{"id": "peer.x", "verdict": "ok", "detail": ""}],
        [{"id": "peer.locks.flock", "verdict": "ok", "detail": 7}],
        [{"id": "peer.locks.flock", "verdict": [], "detail": ""}],
        [{"id": "peer.locks.flock", "verdict": "ok", "detail": ""}] * 201,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_findings_that_make_no_sense_are_refused(findings: object) -> None:
    with pytest.raises(PeerError, match="report is not valid"):
        checked(findings)


def test_findings_of_a_peer_are_shortened() -> None:
    (finding,) = checked([{"id": "peer.locks.flock", "verdict": "ok", "detail": "x" * 10**6}])
    assert len(finding.detail) == 500


def test_what_is_planted_where_messages_lie_is_no_message(tmp_path: Path) -> None:
    """Links, pipes, directories and what is too large; a message that is half written is none yet."""
    (tmp_path / "secret").write_text('{"partner": ""}')
    warden = Warden()
    warden.inspect(str(tmp_path))
    warden.meet(f"{PREFIX}peer-test")
    place = tmp_path / f"{PREFIX}peer-test"
    (place / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(place / "pipe")
    (place / "directory").mkdir()
    (place / "large").write_text("x" * (1 << 17))
    assert [warden.get(name) for name in ("link", "pipe", "directory", "large", "missing")] == [None] * 5
    with pytest.raises(ValueError, match="not a name"):
        warden.put("../x", "")
    warden.put("mine", "{}")
    assert warden.get("mine") == "{}"
    warden.leave()
    assert not (place / "mine").exists()
    assert (tmp_path / "secret").exists()


def test_an_answer_that_makes_no_sense_is_no_answer() -> None:
    class Silent:
        token, patience = A, 0.1

        def __init__(self, answer: dict[str, Any]) -> None:
            self.answer = answer

        def write(self, name: str, content: dict[str, Any]) -> None:
            assert json.dumps(content)

        def drop(self, name: str) -> None:
            pass

        def await_message(self, name: str, seconds: float) -> dict[str, Any]:
            return self.answer

    for answer in ({}, {"errno": "x"}, {"errno": -1}, {"errno": 10**9}, {"wrong": 7}, {"errno": True}):
        side = Remote(Silent(answer), B)  # type: ignore[arg-type]
        side.start("who")
        if answer == {"errno": True}:
            with pytest.raises(PermissionError):  # 1 is EPERM
                side.finish()
        else:
            with pytest.raises(Gone):
                side.finish()


def test_messages_of_dead_runs_go_when_they_are_old(tmp_path: Path) -> None:
    place = tmp_path / f"{PREFIX}peer-test"
    place.mkdir()
    old = place / f"hello-{A}"
    old.write_text("{}")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    with pytest.raises(PeerError):
        meet(str(tmp_path), "test", wait=0.1)
    assert list(tmp_path.iterdir()) == []
