"""The processes of the doctor: small programs that run steps on request and can be killed and replaced at any time.

They start in 30 ms, because `side.py` makes them import only the standard library and this package. A request is a
line on standard input with a JSON object: ``{"do": STEP, ...}``. The answer is one line: ``{"is": VALUE}``,
``{"errno": NUMBER}`` or ``{"wrong": WORDS}``.
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
    """Run the step of a request and return the answer."""
    try:
        request = json.loads(line)
        step = request.pop("do")
        if step.startswith("_"):
            raise ValueError("not a step")
        return {"is": getattr(actor, step)(**request)}
    except OSError as error:
        return {"errno": error.errno or errno.EIO}
    except (ArithmeticError, AttributeError, BufferError, LookupError, TypeError, ValueError) as error:
        return {"wrong": f"{type(error).__name__}: {error}"[:200]}


def serve(actor: object) -> None:
    """Announce that the process is ready, then answer requests until the doctor ends."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    while line := sys.stdin.buffer.readline():
        sys.stdout.buffer.write(json.dumps(answer(actor, line)).encode() + b"\n")
        sys.stdout.buffer.flush()


def main(kind: str, parent: int) -> None:
    """Run an ``actor``, or the ``warden``, which ends after the doctor because it removes the doctor's files."""
    if kind == "warden":
        from sharedvol.doctor.agent.warden import Warden

        warden = Warden()
        try:
            serve(warden)
        finally:
            warden.leave()
        return
    from sharedvol.doctor.agent.actor import Actor

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: no waiting process survives the doctor
    if os.getppid() == parent:
        serve(Actor())
