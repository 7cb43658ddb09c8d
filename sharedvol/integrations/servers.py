"""The server that runs this process, and the remedy if it cannot drain."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final

_OTHER_SERVER: Final = "serve it with uvicorn, or with gunicorn and sharedvol.integrations.gunicorn.hooks"

REMEDIES: Final = {
    "daphne": "call service.drain_on_sigterm() in the main thread, after daphne has set its own handler of SIGTERM",
    "granian": _OTHER_SERVER,
    "gunicorn": "use sharedvol.integrations.gunicorn.hooks",
    "hypercorn": _OTHER_SERVER,
    "uvicorn": "serve an ASGI application with sharedvol.integrations.starlette.lifespan, or use gunicorn with hooks",
    "waitress": "call service.drain_on_sigterm() before waitress.serve()",
}
"""The remedy for each server that does not drain, by the name of its package."""

CLOSE_FIRST: Final = ("granian", "hypercorn")
"""Servers that close the port at SIGTERM regardless of the application, because a parent process or the event loop
handles the signal."""


def server_name(frame: FrameType | None = None) -> str | None:
    """Return the package of the server on the call stack, or None.

    It is the outermost server: gunicorn, if its worker runs uvicorn. A server that is only imported, as in a test, does
    not count.

    Args:
        frame: the frame to start from; None means this function's caller.
    """
    found = None
    frame = frame or sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        found = package if package in REMEDIES else found
        frame = frame.f_back
    return found
