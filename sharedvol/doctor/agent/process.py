"""The processes of the doctor: small programs that do a step when asked, and can be killed and replaced at will.

They start in 30 ms, because they import nothing but the standard library and the few modules here (`side.py` sees
to that). Requests come as JSON objects, one a line, on the standard input: ``{"do": STEP, ...}``; each is answered
by one line: ``{"is": VALUE}``, ``{"errno": NUMBER}`` or ``{"wrong": WORDS}``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
from typing import Any, Final

READY: Final = b"ready\n"


def answer(actor: object, line: bytes) -> dict[str, Any]:
    """What to say to one request."""
    try:
        request = json.loads(line)
        step = request.pop("do")
        if step.startswith("_"):
            raise ValueError("no step")
        return {"is": getattr(actor, step)(**request)}
    except OSError as error:
        return {"errno": error.errno or errno.EIO}
    except (ArithmeticError, AttributeError, BufferError, LookupError, TypeError, ValueError) as error:
        return {"wrong": f"{type(error).__name__}: {error}"[:200]}


def serve(actor: object) -> None:
    """Say that one is there, then answer until the doctor is gone."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    while line := sys.stdin.buffer.readline():
        sys.stdout.buffer.write(json.dumps(answer(actor, line)).encode() + b"\n")
        sys.stdout.buffer.flush()


def main(kind: str, parent: int) -> None:
    """Be an ``actor``, or the ``warden``, who outlives the doctor by the moment that it takes to tidy up."""
    if kind == "warden":
        from sharedvol.doctor.agent.warden import Warden

        warden = Warden()
        try:
            serve(warden)
        finally:
            warden.leave()
        return
    from sharedvol.doctor.agent.actor import Actor

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: no waiter outlives the doctor
    if os.getppid() == parent:
        serve(Actor())
