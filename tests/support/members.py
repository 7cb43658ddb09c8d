"""Processes that join a volume, for the tests of presence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from sharedvol import SharedVolError, Volume

GATE = ".replicas/join.lock"


def joined(path: Path, name: str | None = None) -> Callable[[Connection], None]:
    """What a child does: join, tell its slot, live until it is told something."""

    def work(connection: Connection) -> None:
        connection.send(Volume(path).join(name).slot)
        connection.recv()

    return work


def run_raising(work: Callable[[], object]) -> None:
    """In another thread: the lock belongs to this one."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except SharedVolError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
