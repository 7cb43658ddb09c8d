"""Two doctors in two containers, who find each other over files in the volume and make the experiments between them.

Either writes ``hello-<token>`` and rewrites it, so that it is seen to live; when each has named the other as its
partner, they have met. The one with the smaller token leads: it makes the room, and asks the other's process for steps
as it asks its own. A step is a file ``ask-<token>-<n>``, its answer ``say-<token>-<n>``. At the end the leader tells
what was found.

Neither trusts the other. The follower does a fixed set of harmless steps, in a directory whose name must be a room's,
and the steps themselves are confined to it (actor.py). Every answer is checked where it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from sharedvol.doctor.bench import Bench
from sharedvol.doctor.catalogue import known
from sharedvol.doctor.examination import BETWEEN, DoctorError, Progress, run
from sharedvol.doctor.facts import OF_PEERS
from sharedvol.doctor.limits import PREFIX
from sharedvol.doctor.report import ORDER, Finding
from sharedvol.doctor.side import Gone, Hung, Local, Process, do, text
from sharedvol.errors import describe

WAIT: Final = 60.0
"""Seconds to wait for the other."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_SILENCE: Final = 30.0  # seconds beside the patience after which the other is taken for gone
_MOST_STEPS: Final = 5000
_MOST_SECONDS: Final = 900.0
_BEAT: Final = 0.1
_POLL, _SLOWEST_POLL = 0.002, 0.02
_PAUSE: Final = 0.5  # seconds after which the other is taken to wait; it polls, so its answers are slower

_TOKEN = re.compile(r"[0-9a-f]{32}")
_ROOM = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}")
_STEPS: Final = frozenset(
    "append clock close count date end_lease events facts forget give_name lease link link_race lock look map_read "
    "map_write names open read records remove rename rename_new replace see_replaced set_mode symlink sync sync_room "
    "unlock unnamed watch who write".split()
)


class PeerError(DoctorError):
    """Nobody came, or the other doctor is gone."""


def meet(
    directory: str,
    name: str,
    *,
    wait: float = WAIT,
    patience: float = 10.0,
    progress: Progress = lambda id: None,
) -> tuple[Finding, ...]:
    """Make the experiments with another doctor who calls this with the same name on the same volume.

    Args:
        directory: the volume, by whatever path it has here.
        name: of the meeting.
        wait: seconds to wait for the other.
        patience: seconds that a step may take.
        progress: told what is tried next.

    Raises:
        PeerError: nobody came, the other ended or fell silent, or nothing can be written in the directory.
        OSError: the directory is missing, is none, or cannot be read.
    """
    meeting = _Meeting(directory, name, patience)
    try:
        partner = meeting.find(wait, progress)
        if meeting.token < partner:
            return _lead(meeting, partner, progress)
        return _follow(meeting, partner, progress)
    finally:
        meeting.warden.leave()


class _Meeting:
    """The directory where messages lie."""

    def __init__(self, directory: str, name: str, patience: float) -> None:
        self.directory, self.name, self.patience = directory, name, patience
        self.token = secrets.token_hex(16)
        self.warden = Process("warden", patience)
        try:
            do(self.warden, "look", path=directory)
            self._try("meet", name=f"{PREFIX}peer-{name}")
        except BaseException:
            self.warden.leave()
            raise

    def find(self, wait: float, progress: Progress) -> str:
        """The other's token, when each has named the other."""
        end, beat, partner = time.monotonic() + wait, 0, ""
        seen: dict[str, object] = {}
        alive: set[str] = set()
        while True:
            progress(f"to meet a second doctor --peer {self.name}")
            beat += 1
            self._hello({"partner": partner, "beat": beat})
            hellos = {token: hello for token in self._tokens() if (hello := self.read(f"hello-{token}"))}
            for token, hello in hellos.items():
                if seen.setdefault(token, hello.get("beat")) != hello.get("beat"):
                    alive.add(token)  # a dead run's hello stays as it is
            choosers = {token for token in alive & hellos.keys() if hellos[token].get("partner") == self.token}
            if partner in choosers:
                self._hello({"partner": partner, "beat": beat + 1})
                return partner
            free = {token for token in alive & hellos.keys() if hellos[token].get("partner") == ""}
            if partner not in free:
                partner = min(choosers or free, default="")
            elif choosers:
                partner = min(choosers)
            if time.monotonic() > end:
                raise PeerError(
                    f"no second doctor came within {wait:g} s: run 'sharedvol doctor DIR --peer {self.name}' in the "
                    "other container at the same time, DIR being the same volume there, as a user who may write to it"
                )
            time.sleep(_BEAT)

    def _hello(self, content: dict[str, Any]) -> None:
        try:
            self.write(f"hello-{self.token}", content)
        except FileNotFoundError:  # who met before us removed the directory
            self._try("meet", name=f"{PREFIX}peer-{self.name}")
            self.write(f"hello-{self.token}", content)

    def _tokens(self) -> list[str]:
        names = [name.removeprefix("hello-") for name in self._try("listing") if name.startswith("hello-")]
        return [token for token in names if _TOKEN.fullmatch(token) and token != self.token][:20]

    def write(self, name: str, content: dict[str, Any]) -> None:
        self._try("put", name=name, text=json.dumps(content))

    def read(self, name: str) -> dict[str, Any] | None:
        """A message; None where there is none, or what is there is none (yet)."""
        found = self._try("get", name=name)
        try:
            content = json.loads(found or "")
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def drop(self, name: str) -> None:
        self._try("drop", name=name)

    def await_message(self, name: str, seconds: float, meanwhile: Callable[[], bool] = lambda: False) -> Any:
        """Poll for a message; None where ``meanwhile`` became true, or none came."""
        end, pause = time.monotonic() + seconds, _POLL
        while True:
            found = self.read(name)
            if found is not None:
                return found
            if meanwhile() or time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_POLL)

    def _try(self, step: str, **arguments: Any) -> Any:
        try:
            return do(self.warden, step, **arguments)
        except FileNotFoundError:
            raise
        except (Hung, Gone) as error:
            raise PeerError(f"cannot meet in {self.directory!r}: {error}") from error
        except OSError as error:
            raise PeerError(
                f"cannot meet in {self.directory!r}: {describe(error)}; both doctors must be allowed to write there"
            ) from error


class _Remote:
    """The other doctor's process as a side."""

    def __init__(self, meeting: _Meeting, partner: str) -> None:
        self._meeting, self._partner = meeting, partner
        self._number = 0
        self.gone = self._owes = False
        self._answer: dict[str, Any] | None = None
        self._step = ""

    def start(self, step: str, /, **arguments: Any) -> None:
        if self.gone:
            raise Gone("the other doctor is gone")
        if self._owes and step != "kill":
            self.kill()
        self._number += 1
        self._answer, self._owes, self._step = None, True, step
        self._meeting.write(f"ask-{self._meeting.token}-{self._number}", {"do": step, **arguments})

    def finish(self, patience: float | None = None) -> Any:
        seconds = self._meeting.patience if patience is None else patience
        if not self._look(seconds + _SILENCE):
            self.gone = True
            raise Gone("the other doctor fell silent")
        assert self._answer is not None
        self._owes = False
        self._meeting.drop(f"ask-{self._meeting.token}-{self._number}")
        if "hung" in self._answer:
            raise Hung(self._step, self._meeting.patience)
        if "is" in self._answer:
            return self._answer["is"]
        code = self._answer.get("errno")
        if isinstance(code, int) and 0 < code < 4096:
            raise OSError(code, os.strerror(code))
        raise Gone("the other side cannot do this step")

    def _look(self, seconds: float) -> bool:
        if self._answer is None:
            self._answer = self._meeting.await_message(f"say-{self._partner}-{self._number}", seconds)
        return self._answer is not None

    def waits(self, seconds: float) -> bool:
        return not self._look(seconds)

    def kill(self) -> None:
        if not self.gone:
            do(self, "kill")

    def rest(self) -> None:
        if self._owes:
            self.kill()
        elif not self.gone:
            do(self, "forget")


def _lead(meeting: _Meeting, partner: str, progress: Progress) -> tuple[Finding, ...]:
    room = text(do(meeting.warden, "make", open_to_all=True))
    ours, theirs = Local(meeting.directory, room, meeting.patience), _Remote(meeting, partner)
    bench = Bench(ours, theirs, lambda: do(meeting.warden, "sweep"), _PAUSE)
    findings = []
    try:
        try:
            do(theirs, "enter", room=room)
        except (OSError, Hung, Gone) as error:
            raise PeerError(f"the other doctor cannot open the directory that this one made: {error}") from error
        for finding in run(bench, (*OF_PEERS, *BETWEEN), progress, "peer."):
            if theirs.gone:
                raise PeerError(
                    f"the other doctor fell silent at {finding.id}: look whether its container runs, and try again"
                )
            findings.append(finding)
        told = [{"id": one.id, "verdict": one.verdict, "detail": one.detail[:500]} for one in findings]
        with contextlib.suppress(Hung, Gone):  # what was found stays true
            do(theirs, "bye", findings=told)
    finally:
        ours.kill()
    return tuple(findings)


def _follow(meeting: _Meeting, partner: str, progress: Progress) -> tuple[Finding, ...]:
    """Do what the leader asks until it tells what was found."""
    follower = _Follower(meeting, partner)
    end = time.monotonic() + _MOST_SECONDS
    try:
        for number in range(1, _MOST_STEPS):
            progress(f"step {number} of the other doctor's")
            request = follower.next(number)
            if time.monotonic() > end:
                break
            if request.get("do") == "bye":
                findings = _checked(request.get("findings"))
                follower.say(number, {"is": None})
                follower.linger(number)
                return findings
            follower.obey(number, request)
    finally:
        follower.end()
    raise PeerError("the other doctor asks for more than any examination needs")


class _Follower:
    """A process of ours that the other doctor asks for steps."""

    def __init__(self, meeting: _Meeting, partner: str) -> None:
        self._meeting, self._partner = meeting, partner
        self._side: Local | None = None
        self._asked, self._since = 0, 0.0

    def next(self, number: int) -> dict[str, Any]:
        """The next request; meanwhile what is under way is answered."""
        request = self._meeting.await_message(
            f"ask-{self._partner}-{number}", self._meeting.patience + _SILENCE, self._answered
        )
        if request is None and self._asked == 0:  # an answer was given: go on waiting
            request = self._meeting.await_message(f"ask-{self._partner}-{number}", self._meeting.patience + _SILENCE)
        if request is None:
            raise PeerError("the other doctor fell silent: look whether its container still runs, and try again")
        if number > 1:
            self._meeting.drop(f"say-{self._meeting.token}-{number - 1}")
        return dict(request)

    def obey(self, number: int, request: dict[str, Any]) -> None:
        """Start a step."""
        step = request.pop("do", None)
        if step == "enter" and _ROOM.fullmatch(room := str(request.get("room"))):
            self.end()
            self._side = Local(self._meeting.directory, room, self._meeting.patience)
            step, request = "who", {}
        if step == "kill" and self._side is not None:
            self.end()
            self.say(number, {"is": None})
        elif isinstance(step, str) and step in _STEPS and self._side is not None:
            self._asked, self._since = number, time.monotonic()
            try:
                self._side.start(step, **request)
            except (Hung, Gone, OSError) as error:
                self._tell(error)
            else:
                self._answered()
        else:
            self.say(number, {"wrong": "no such step"})

    def _answered(self) -> bool:
        """Whether the step under way has come to its end, which is told then."""
        if not self._asked or self._side is None:
            return False
        patience = self._meeting.patience + 5
        try:
            if self._side.waits(0.01):
                if time.monotonic() - self._since < patience:
                    return False
                raise Hung("a step", patience)
            self.say(self._asked, {"is": self._side.finish()})
        except (Hung, Gone, OSError) as error:
            self._tell(error)
        self._asked = 0
        return True

    def _tell(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self.say(self._asked, {"errno": error.errno})
        elif isinstance(error, Hung):
            self.end()
            self.say(self._asked, {"hung": True})
        else:
            self.say(self._asked, {"wrong": str(error)[:200]})
        self._asked = 0

    def say(self, number: int, answer: dict[str, Any]) -> None:
        self._asked = 0
        self._meeting.write(f"say-{self._meeting.token}-{number}", answer)

    def linger(self, number: int) -> None:
        """Until the leader has taken the last answer: what we wrote goes with us."""
        end = time.monotonic() + _SILENCE
        while self._meeting.read(f"ask-{self._partner}-{number}") is not None and time.monotonic() < end:
            time.sleep(_SLOWEST_POLL)

    def end(self) -> None:
        if self._side is not None:
            self._side.kill()


def _checked(findings: object) -> tuple[Finding, ...]:
    """What the leader says was found, where it makes sense."""
    if not isinstance(findings, list) or len(findings) > 200:
        raise PeerError("what the other doctor says it found makes no sense")
    checked = []
    for one in findings:
        if not isinstance(one, dict):
            raise PeerError("what the other doctor says it found makes no sense")
        id, verdict, detail = one.get("id"), one.get("verdict"), one.get("detail")
        if not (isinstance(id, str) and id.startswith("peer.") and known(id) and isinstance(detail, str)):
            raise PeerError("what the other doctor says it found makes no sense")
        found = next((sound for sound in ORDER if sound == verdict), None)
        if found is None:
            raise PeerError("what the other doctor says it found makes no sense")
        checked.append(Finding(id, found, detail[:500]))
    return tuple(checked)
