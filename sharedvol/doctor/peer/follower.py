"""The side of the doctor who follows: what the other asks for, within bounds."""

from __future__ import annotations

import re
import time
from typing import Any, Final

from sharedvol.doctor.advice import known
from sharedvol.doctor.agent.limits import PREFIX
from sharedvol.doctor.peer import meeting as met
from sharedvol.doctor.peer.meeting import Meeting, PeerError
from sharedvol.doctor.report import ORDER, Finding
from sharedvol.doctor.side import Gone, Hung, Local

_ROOM = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}")
_STEPS: Final = frozenset(
    "append clock close count date end_lease events facts forget give_name lease link link_race lock look map_read "
    "map_write names open read records remove rename rename_new replace see_replaced set_mode symlink sync sync_room "
    "unlock unnamed watch who write".split()
)


class Follower:
    """A process of ours that the other doctor asks for steps."""

    def __init__(self, meeting: Meeting, partner: str) -> None:
        self._meeting, self._partner = meeting, partner
        self._side: Local | None = None
        self._asked, self._since = 0, 0.0

    def next(self, number: int) -> dict[str, Any]:
        """The next request; meanwhile what is under way is answered."""
        request = self._meeting.await_message(
            f"ask-{self._partner}-{number}", self._meeting.patience + met.SILENCE, self._answered
        )
        if request is None and self._asked == 0:  # an answer was given: go on waiting
            request = self._meeting.await_message(f"ask-{self._partner}-{number}", self._meeting.patience + met.SILENCE)
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
        end = time.monotonic() + met.SILENCE
        while self._meeting.read(f"ask-{self._partner}-{number}") is not None and time.monotonic() < end:
            time.sleep(met.SLOWEST_POLL)

    def end(self) -> None:
        if self._side is not None:
            self._side.kill()


def checked(findings: object) -> tuple[Finding, ...]:
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
