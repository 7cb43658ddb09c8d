"""Replica logs to test with: handlers, what their files hold, and a way to disturb them at every step."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import files as log_files
from sharedvol.logs import handler as logs
from sharedvol.logs import names as log_names
from sharedvol.logs import writer as log_writer

_MODULES = frozenset({logs.__file__, log_names.__file__, log_writer.__file__, log_files.__file__})


def log(handler: logging.Handler, text: str, level: int = logging.INFO) -> None:
    """One record, as a logger would give it."""
    handler.handle(record(text, level))


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    """A record as a logger makes it."""
    return logging.LogRecord("test", level, __file__, 1, "%s", (text,), None)


@contextmanager
def opened(directory: Path, **options: Any) -> Iterator[ReplicaFileHandler]:
    """A handler that is closed at the end."""
    handler = ReplicaFileHandler(directory, **options)
    try:
        yield handler
    finally:
        handler.close()


def contents(*roots: Path) -> dict[str, str]:
    """Every file below, without what is hidden or followed still."""
    found = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            names[:] = [name for name in names if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and not name.endswith(".live"):
                    path = Path(directory, name)
                    found[str(path.relative_to(root))] = path.read_text()
    return found


def lines(*roots: Path) -> Counter[str]:
    """How often each line is there; no file may end with a part of one."""
    counted: Counter[str] = Counter()
    for path, text in contents(*roots).items():
        assert text == "" or text.endswith("\n"), f"{path} ends with a part of a line: {text[-50:]!r}"
        counted.update(text.split("\n")[:-1])
    return counted


def once(texts: Iterator[str] | list[str]) -> Counter[str]:
    """What `lines` is to return where none is lost, cut or doubled."""
    expected = Counter(texts)
    assert set(expected.values()) <= {1}
    return expected


def steps_of(work: Callable[[], object]) -> int:
    """How many lines of the handler's own code ``work`` runs through."""
    seen = 0

    def count(step: int) -> None:
        nonlocal seen
        seen = step

    disturbed(work, count)
    return seen


def disturbed(work: Callable[[], object], disturb: Callable[[int], None]) -> None:
    """Run ``work``, and before each line of the handler's own code call ``disturb`` with its number, from 1.

    What a signal handler may do at any moment, at every moment in turn: raise, log, fork, die.
    """
    step = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal step
        if frame.f_code.co_filename not in _MODULES:
            return None
        if event == "line":
            step += 1
            disturb(step)
        return trace

    before = sys.gettrace()
    gc.disable()  # a handler of an earlier test that is finalised meanwhile would run the same code
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
