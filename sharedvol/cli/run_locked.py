"""Run a command under a file lock: ``sharedvol lock``."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from sharedvol.errors import SharedVolError
from sharedvol.locks import FileLock

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128
TOKEN_VARIABLE = "SHAREDVOL_LOCK_TOKEN"
"""The environment variable by which the command learns its fencing token."""

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class CannotRun(SharedVolError):
    """The command cannot be started; ``code`` is what a shell would exit with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run_locked(lock: FileLock, command: Sequence[str]) -> int:
    """Run ``command`` while holding ``lock``, and give its exit code; 128 + n if signal n killed it.

    The command inherits the lock's descriptor. So the lock outlives this process if that is killed, as
    long as the command runs: nobody else can begin beside it. When the command ends the lock is
    released, though a daemon that it left behind may have the descriptor still. See flock(2).

    Args:
        lock: acquired here, by its own timeout, and released. If it is fenced, the command finds its token in
            the environment variable ``SHAREDVOL_LOCK_TOKEN``.
        command: the program and its arguments.

    Raises:
        LockTimeout, LockFileError: as `FileLock.acquire`.
        LockLostError: the lock was lost while the command ran.
        CannotRun: there is no such program, or it is not executable.
    """
    with lock:
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        if lock.fenced:
            environment[TOKEN_VARIABLE] = str(lock.token)
        return _run(command, lock.fileno(), environment)


def _run(command: Sequence[str], descriptor: int, environment: dict[str, str]) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []
    in_foreground = _in_foreground()

    def forward(number: int, frame: FrameType | None) -> None:
        if number in _FROM_TERMINAL and in_foreground:
            return  # the terminal sent it to the command, too
        if child is None:
            early.append(number)
        elif child.returncode is None:
            child.send_signal(number)

    # Handlers, not SIG_IGN: an ignored signal would stay ignored in the command, see execve(2).
    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        try:
            child = subprocess.Popen(command, pass_fds=(descriptor,), env=environment)
        except FileNotFoundError:
            raise CannotRun(f"command {command[0]!r} not found", NOT_FOUND) from None
        except OSError as error:
            raise CannotRun(f"cannot run {command[0]!r}: {error.strerror}", NOT_EXECUTABLE) from None
        for number in early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else SIGNALLED - code


def _in_foreground() -> bool:
    """Whether a terminal sends its signals to this process, and so to its children, itself."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
