"""Threads and the end of a process.

These threads are daemon threads, because the interpreter joins the pools of `concurrent.futures`, and the event loop
joins that of ``asyncio.to_thread``. A query to a server that does not answer would then delay a stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

START_UP_FAILED: Final = 3
"""The exit status after a failed start-up. If a worker ends with it, uvicorn and gunicorn stop instead of starting the
worker again and again."""

_FLUSH_SECONDS: Final = 2.0

_Result = TypeVar("_Result")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Run ``function`` in a daemon thread."""
    thread = threading.Thread(target=function, name=f"sharedvol-{name}", daemon=True)
    thread.start()
    return thread


def in_thread(function: Callable[[], _Result], name: str) -> asyncio.Future[_Result]:
    """Run ``function`` in a daemon thread, and return a future of the running event loop for its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def deliver(put: Callable[[Any], None], value: Any) -> None:
        if not future.done():  # it was cancelled
            put(value)

    def run() -> None:
        put: Callable[[Any], None]
        try:
            value: Any = function()
            put = future.set_result
        except BaseException as error:
            value, put = error, future.set_exception
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(deliver, put, value)

    start_thread(run, name)
    return future


def end_process(status: int = START_UP_FAILED) -> None:
    """End the process at once, from any thread, after flushing the logs and the output."""
    flushing = start_thread(_flush, "flush")
    flushing.join(_FLUSH_SECONDS)  # another thread may hold a handler's lock indefinitely
    os._exit(status)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
