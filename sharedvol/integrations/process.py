"""What concerns a process as a whole: its end, who started it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

from sharedvol.integrations.background import start_thread

START_UP_FAILED: Final = 3
"""The exit status after a failed start-up. uvicorn and gunicorn both take a worker that ends with 3 for one that
could not start, and stop instead of starting it again and again."""

_FLUSH_SECONDS: Final = 2.0


def end_process(status: int = START_UP_FAILED) -> None:
    """End at once, from any thread, after what was logged and printed has been written."""
    flushing = start_thread(_flush, "flush")
    flushing.join(_FLUSH_SECONDS)  # another thread may hold a handler's lock for ever
    os._exit(status)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
