"""The two sides of an experiment: processes that run steps on request, each within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

PATIENCE: Final = 10.0
"""Seconds that a step may take before the file system counts as hanging."""

_REAP: Final = 2.0  # seconds for a killed process to end; in the kernel's state D it does not, see proc_pid_stat(5)
_STARTING: Final = 60.0  # seconds for a process to start
_MOST_ANSWER: Final = 1 << 20

# This skips the package's __init__, which imports a lot, so that an actor starts in 30 ms instead of 200.
_START: Final = """
import sys, types
for name, path in zip(("sharedvol", "sharedvol.doctor", "sharedvol.doctor.agent"), sys.argv[3:]):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from sharedvol.doctor.agent.process import main
main(sys.argv[1], int(sys.argv[2]))
"""


class Hung(Exception):
    """A step did not finish in time.

    Attributes:
        step: its name.
        patience: the seconds that it had.
        stuck: the process that SIGKILL does not end, because it waits in the kernel.
    """

    def __init__(self, step: str, patience: float, stuck: int | None = None) -> None:
        super().__init__(step, patience, stuck)
        self.step, self.patience, self.stuck = step, patience, stuck

    def __str__(self) -> str:
        how = f"; process {self.stuck} hangs in the kernel and cannot be killed" if self.stuck else ""
        return f"{self.step} did not finish within {self.patience:g} s{how}"


class Gone(Exception):
    """The other side has ended, or its answer is not valid."""


class StepRunner(Protocol):
    """A process that runs steps."""

    def start(self, step: str, /, **arguments: Any) -> None:
        """Start a step, without waiting."""

    def finish(self, patience: float | None = None) -> Any:
        """Wait for the step that was started, and return its result.

        Raises:
            OSError: the step raised it.
            Hung: the step did not finish in time.
            Gone: the process has ended, or its answer is not valid.
        """


class Side(StepRunner, Protocol):
    """One of the two processes of an experiment."""

    def waits(self, seconds: float) -> bool:
        """Return whether the step is still running after some seconds."""

    def kill(self) -> None:
        """Kill the process. The next step starts another one."""

    def rest(self) -> None:
        """Close everything that an experiment opened. Raises as `finish` does."""


def do(side: StepRunner, step: str, /, **arguments: Any) -> Any:
    """Run a step and return its result, see `StepRunner.finish`."""
    side.start(step, **arguments)
    return side.finish()


def number(value: object) -> int:
    """Return an answer that must be a number. A peer may answer anything.

    Raises:
        Gone: it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 64:
        raise Gone("the other side's answer is not a number")
    return value


def text(value: object, most: int = 500) -> str:
    """Return an answer that must be a string, shortened."""
    if not isinstance(value, str):
        raise Gone("the other side's answer is not a string")
    return value[:most]


def flag(value: object) -> bool:
    """Return an answer that must be true or false."""
    if not isinstance(value, bool):
        raise Gone("the other side's answer is neither true nor false")
    return value


def record(value: object, *keys: str) -> dict[str, int]:
    """Return an answer that must be a mapping with numbers for all keys."""
    if not isinstance(value, dict) or len(value) > 100 or not all(key in value for key in keys):
        raise Gone("the other side's answer is incomplete")
    return {text(key, 100): number(one) for key, one in value.items()}


def decode(line: bytes) -> Any:
    """Return the result in an answer.

    Raises:
        OSError: the step failed with it.
        Gone: the answer is not valid.
    """
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and "is" in answer:
        return answer["is"]
    if isinstance(answer, dict) and isinstance(code := answer.get("errno"), int) and 0 < code < 4096:
        raise OSError(code, os.strerror(code))
    wrong = answer.get("wrong") if isinstance(answer, dict) else None
    raise Gone(f"the other side cannot run this step: {text(wrong) if isinstance(wrong, str) else 'no reason given'}")


class Process:
    """A process of this doctor (process.py), reached by pipes.

    Args:
        kind: ``actor`` or ``warden``.
        patience: seconds that a step may take.
    """

    def __init__(self, kind: str, patience: float) -> None:
        here = Path(__file__).parent
        command: Sequence[str | Path] = (
            *(sys.executable, "-I", "-S", "-c", _START),
            *(kind, str(os.getpid()), here.parent, here, here / "agent"),
        )
        self._patience = patience
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=kind == "warden",  # the terminal's Ctrl-C ends the doctor, and the warden then tidies up
        )
        self._buffer = b""
        self._step = ""
        self._ready = False

    def start(self, step: str, /, **arguments: Any) -> None:
        """See `StepRunner.start`."""
        assert self._popen.stdin is not None
        if self._popen.stdin.closed:  # the process hung and was killed
            raise Gone("the process of the experiment ended")
        self._step = step
        if not self._ready:  # a busy machine delays the start, which says nothing about the file system
            if not self._read(_STARTING):
                self.end()
                raise Gone("the process of the experiment does not start")
            _, _, self._buffer = self._buffer.partition(b"\n")
            self._ready = True
        try:
            self._popen.stdin.write(json.dumps({"do": step, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise Gone("the process of the experiment ended") from None

    def finish(self, patience: float | None = None) -> Any:
        """See `StepRunner.finish`."""
        return decode(self.answer(patience))

    def answer(self, patience: float | None = None) -> bytes:
        """Return the line of the answer."""
        patience = self._patience if patience is None else patience
        if not self._read(patience):
            raise Hung(self._step, patience, None if self.end() else self._popen.pid)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def waits(self, seconds: float) -> bool:
        """See `Side.waits`."""
        return not self._read(seconds)

    def end(self) -> bool:
        """Kill and reap the process. Return False if it cannot be killed."""
        self._popen.kill()
        try:
            self._popen.wait(min(_REAP, self._patience))
        except subprocess.TimeoutExpired:
            return False
        self._close()
        return True

    def leave(self) -> bool:
        """Let the process end by itself, as the warden does after it tidied up. Return False if it had to be killed."""
        self._close()
        try:
            self._popen.wait(self._patience)
        except subprocess.TimeoutExpired:
            self.end()
            return False
        return True

    def _close(self) -> None:
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self, seconds: float) -> bool:
        """Return whether a line arrives within some seconds."""
        assert self._popen.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not select.select([self._popen.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return False
            data = os.read(self._popen.stdout.fileno(), 1 << 16)
            if not data or len(self._buffer) > _MOST_ANSWER:
                raise Gone("the process of the experiment ended")
            self._buffer += data
        return True


class Local:
    """A side on this machine: an actor in a room. After it is killed, the next step starts another one.

    Args:
        path: the directory above the room, under the path of this side.
        room: the room's name.
        patience: seconds that a step may take.
    """

    def __init__(self, path: str, room: str, patience: float) -> None:
        self._path, self._room, self._patience = path, room, patience
        self._process: Process | None = None
        self._owes = False  # an answer

    def start(self, step: str, /, **arguments: Any) -> None:
        """See `StepRunner.start`."""
        if self._owes:
            self.kill()  # the last experiment ended early, so the next answer would belong to its step
        if self._process is None:
            self._process = Process("actor", self._patience)
            self._process.start("enter", path=self._path, name=self._room)
            self.finish()
        self._process.start(step, **arguments)
        self._owes = True

    def finish(self, patience: float | None = None) -> Any:
        """See `StepRunner.finish`."""
        assert self._process is not None
        self._owes = False
        try:
            return self._process.finish(patience)
        except Hung:
            self._process = None  # killed, or beyond that
            raise
        except Gone:
            self.kill()
            raise

    def waits(self, seconds: float) -> bool:
        """See `Side.waits`."""
        assert self._process is not None
        return self._process.waits(seconds)

    def kill(self) -> None:
        """See `Side.kill`."""
        process, self._process, self._owes = self._process, None, False
        if process is not None:
            process.end()

    def rest(self) -> None:
        """See `Side.rest`."""
        if self._owes:
            self.kill()
        elif self._process is not None:
            do(self, "forget")
