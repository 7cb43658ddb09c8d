"""Two doctors in two containers that find each other through files in the volume and run the experiments together.

Each writes ``hello-<token>`` and rewrites it to show that it is alive. They have met when each has named the other as
its partner. The doctor with the smaller token leads: it creates the room, and requests steps from the other doctor's
process as it does from its own. A step is a file ``ask-<token>-<n>``, and its answer is ``say-<token>-<n>``. At the end
the leader sends its findings.

Neither trusts the other. The follower runs a fixed set of harmless steps, in a directory whose name must be that of a
room, and the steps are confined to the room (actor.py). Every answer is checked where it is used.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Final

from sharedvol.doctor.examination import BETWEEN, Progress, run
from sharedvol.doctor.experiments.names_and_clocks import OF_PEERS
from sharedvol.doctor.experiments.testbed import TestBed
from sharedvol.doctor.peer.follower import Follower, checked
from sharedvol.doctor.peer.meeting import Meeting, PeerError
from sharedvol.doctor.peer.remote import Remote
from sharedvol.doctor.report import Finding
from sharedvol.doctor.side import Gone, Hung, Local, do, text

WAIT: Final = 60.0
"""Seconds to wait for the other doctor."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_MOST_STEPS: Final = 5000
_MOST_SECONDS: Final = 900.0
_PAUSE: Final = 0.5  # seconds after which the other side counts as waiting; it polls, so its answers are slower


def meet(
    directory: str,
    name: str,
    *,
    wait: float = WAIT,
    patience: float = 10.0,
    progress: Progress = lambda id: None,
) -> tuple[Finding, ...]:
    """Run the experiments with another doctor that calls this function with the same name on the same volume.

    Args:
        directory: the volume, under its path in this container.
        name: the name of the meeting.
        wait: seconds to wait for the other doctor.
        patience: seconds that a step may take.
        progress: gets the id of the next experiment.

    Raises:
        PeerError: no doctor came, the other one ended or does not answer, or the directory is not writable.
        OSError: the directory is missing, is not a directory, or cannot be read.
    """
    meeting = Meeting(directory, name, patience)
    try:
        partner = meeting.find(wait, progress)
        if meeting.token < partner:
            return _lead(meeting, partner, progress)
        return _follow(meeting, partner, progress)
    finally:
        meeting.warden.leave()


def _lead(meeting: Meeting, partner: str, progress: Progress) -> tuple[Finding, ...]:
    room = text(do(meeting.warden, "make", open_to_all=True))
    ours, theirs = Local(meeting.directory, room, meeting.patience), Remote(meeting, partner)
    bed = TestBed(ours, theirs, lambda: do(meeting.warden, "sweep"), _PAUSE)
    findings = []
    try:
        try:
            do(theirs, "enter", room=room)
        except (OSError, Hung, Gone) as error:
            raise PeerError(f"the other doctor cannot open the directory that this one created: {error}") from error
        for finding in run(bed, (*OF_PEERS, *BETWEEN), progress, "peer."):
            if theirs.gone:
                raise PeerError(
                    f"the other doctor stopped answering at {finding.id}: check that its container runs, and try again"
                )
            findings.append(finding)
        report = [{"id": one.id, "verdict": one.verdict, "detail": one.detail[:500]} for one in findings]
        with contextlib.suppress(Hung, Gone):  # the findings are valid even if the other doctor does not get them
            do(theirs, "bye", findings=report)
    finally:
        ours.kill()
    return tuple(findings)


def _follow(meeting: Meeting, partner: str, progress: Progress) -> tuple[Finding, ...]:
    """Run the leader's steps until it sends its findings."""
    follower = Follower(meeting, partner)
    end = time.monotonic() + _MOST_SECONDS
    try:
        for number in range(1, _MOST_STEPS):
            progress(f"step {number} of the other doctor")
            request = follower.next(number)
            if time.monotonic() > end:
                break
            if request.get("do") == "bye":
                findings = checked(request.get("findings"))
                follower.say(number, {"is": None})
                follower.wait_until_read(number)
                return findings
            follower.run(number, request)
    finally:
        follower.end()
    raise PeerError("the other doctor requests more steps than an examination needs")
