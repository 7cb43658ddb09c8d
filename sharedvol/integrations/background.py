"""Threads that nobody waits for at the end of the process.

The pools of `concurrent.futures` and of asyncio's ``to_thread`` are joined when the interpreter or the loop ends:
one question to a server that does not answer would then hold up a stop. A daemon thread is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Run ``function`` in a daemon thread."""
    thread = threading.Thread(target=function, name=f"sharedvol-{name}", daemon=True)
    thread.start()
    return thread


def in_thread(function: Callable[[], _Result], name: str) -> asyncio.Future[_Result]:
    """What ``function``, run in a daemon thread, returns or raises. To be called where a loop runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def deliver(put: Callable[[Any], None], value: Any) -> None:
        if not future.done():  # cancelled meanwhile
            put(value)

    def run() -> None:
        put: Callable[[Any], None]
        try:
            value: Any = function()
            put = future.set_result
        except BaseException as error:
            value, put = error, future.set_exception
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, put, value)

    start_thread(run, name)
    return future
