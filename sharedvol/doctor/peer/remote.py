"""A side of an experiment that runs in the other doctor's container."""

from __future__ import annotations

import os
from typing import Any

from sharedvol.doctor.peer import meeting
from sharedvol.doctor.peer.meeting import Meeting
from sharedvol.doctor.side import Gone, Hung, do


class Remote:
    """The other doctor's process as a side.

    Args:
        meeting: the directory of messages.
        partner: the other doctor's token.
    """

    def __init__(self, meeting: Meeting, partner: str) -> None:
        self._meeting, self._partner = meeting, partner
        self._number = 0
        self.gone = self._owes = False
        self._answer: dict[str, Any] | None = None
        self._step = ""

    def start(self, step: str, /, **arguments: Any) -> None:
        """See `StepRunner.start`."""
        if self.gone:
            raise Gone("the other doctor has ended")
        if self._owes and step != "kill":
            self.kill()
        self._number += 1
        self._answer, self._owes, self._step = None, True, step
        self._meeting.write(f"ask-{self._meeting.token}-{self._number}", {"do": step, **arguments})

    def finish(self, patience: float | None = None) -> Any:
        """See `StepRunner.finish`."""
        seconds = self._meeting.patience if patience is None else patience
        if not self._has_answer(seconds + meeting.SILENCE):
            self.gone = True
            raise Gone("the other doctor does not answer")
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

    def _has_answer(self, seconds: float) -> bool:
        if self._answer is None:
            self._answer = self._meeting.await_message(f"say-{self._partner}-{self._number}", seconds)
        return self._answer is not None

    def waits(self, seconds: float) -> bool:
        """See `Side.waits`."""
        return not self._has_answer(seconds)

    def kill(self) -> None:
        """See `Side.kill`."""
        if not self.gone:
            do(self, "kill")

    def rest(self) -> None:
        """See `Side.rest`."""
        if self._owes:
            self.kill()
        elif not self.gone:
            do(self, "forget")
