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
"""Seconds to wait for the other."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_MOST_STEPS: Final = 5000
_MOST_SECONDS: Final = 900.0
_PAUSE: Final = 0.5  # seconds after which the other is taken to wait; it polls, so its answers are slower


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
    bench = TestBed(ours, theirs, lambda: do(meeting.warden, "sweep"), _PAUSE)
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


def _follow(meeting: Meeting, partner: str, progress: Progress) -> tuple[Finding, ...]:
    """Do what the leader asks until it tells what was found."""
    follower = Follower(meeting, partner)
    end = time.monotonic() + _MOST_SECONDS
    try:
        for number in range(1, _MOST_STEPS):
            progress(f"step {number} of the other doctor's")
            request = follower.next(number)
            if time.monotonic() > end:
                break
            if request.get("do") == "bye":
                findings = checked(request.get("findings"))
                follower.say(number, {"is": None})
                follower.linger(number)
                return findings
            follower.obey(number, request)
    finally:
        follower.end()
    raise PeerError("the other doctor asks for more than any examination needs")
