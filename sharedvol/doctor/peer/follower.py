"""The doctor that follows: it runs the steps that the leading doctor requests, within bounds."""

from __future__ import annotations

import re
import time
from typing import Any, Final

from sharedvol.doctor.advice import known
from sharedvol.doctor.agent.limits import PREFIX
from sharedvol.doctor.peer import meeting
from sharedvol.doctor.peer.meeting import Meeting, PeerError
from sharedvol.doctor.report import ORDER, Finding
from sharedvol.doctor.side import Gone, Hung, Local

_ROOM = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}")
_STEPS: Final = frozenset(
    "append clock close count date end_lease events facts forget give_name lease link link_race lock look map_read "
    "map_write names open read records remove rename rename_new replace see_replaced set_mode symlink sync sync_room "
    "unlock unnamed watch who write".split()
)


_NONSENSE: Final = "the other doctor's report is not valid: run the same version of sharedvol in both containers"


class Follower:
    """A process on this side that runs the other doctor's steps.

    Args:
        meeting: the directory of messages.
        partner: the other doctor's token.
    """

    def __init__(self, meeting: Meeting, partner: str) -> None:
        self._meeting, self._partner = meeting, partner
        self._side: Local | None = None
        self._asked, self._since = 0, 0.0

    def next(self, number: int) -> dict[str, Any]:
        """Wait for the next request, and meanwhile answer the previous one when its step ends."""
        request = self._meeting.await_message(
            f"ask-{self._partner}-{number}", self._meeting.patience + meeting.SILENCE, self.answer_if_done
        )
        if request is None and self._asked == 0:  # the wait ended because an answer was sent
            request = self._meeting.await_message(
                f"ask-{self._partner}-{number}", self._meeting.patience + meeting.SILENCE
            )
        if request is None:
            raise PeerError("the other doctor does not answer: check that its container still runs, and try again")
        if number > 1:
            self._meeting.drop(f"say-{self._meeting.token}-{number - 1}")
        return dict(request)

    def run(self, number: int, request: dict[str, Any]) -> None:
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
                self._say_error(error)
            else:
                self.answer_if_done()
        else:
            self.say(number, {"wrong": "no such step"})

    def answer_if_done(self) -> bool:
        """Send the answer if the running step has ended, and return whether it has."""
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
            self._say_error(error)
        self._asked = 0
        return True

    def _say_error(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self.say(self._asked, {"errno": error.errno})
        elif isinstance(error, Hung):
            self.end()
            self.say(self._asked, {"hung": True})
        else:
            self.say(self._asked, {"wrong": str(error)[:200]})
        self._asked = 0

    def say(self, number: int, answer: dict[str, Any]) -> None:
        """Answer a request."""
        self._asked = 0
        self._meeting.write(f"say-{self._meeting.token}-{number}", answer)

    def wait_until_read(self, number: int) -> None:
        """Wait until the leader has read the last answer, because our messages are removed when we leave."""
        end = time.monotonic() + meeting.SILENCE
        while self._meeting.read(f"ask-{self._partner}-{number}") is not None and time.monotonic() < end:
            time.sleep(meeting.SLOWEST_POLL)

    def end(self) -> None:
        """Kill the process."""
        if self._side is not None:
            self._side.kill()


def checked(findings: object) -> tuple[Finding, ...]:
    """Return the findings of the leader.

    Raises:
        PeerError: they are not findings.
    """
    if not isinstance(findings, list) or len(findings) > 200:
        raise PeerError(_NONSENSE)
    return tuple(map(_finding, findings))


def _finding(one: object) -> Finding:
    if not isinstance(one, dict):
        raise PeerError(_NONSENSE)
    id, verdict, detail = one.get("id"), one.get("verdict"), one.get("detail")
    if not (isinstance(id, str) and id.startswith("peer.") and known(id) and isinstance(detail, str)):
        raise PeerError(_NONSENSE)
    sound = next((sound for sound in ORDER if sound == verdict), None)
    if sound is None:
        raise PeerError(_NONSENSE)
    return Finding(id, sound, detail[:500])
