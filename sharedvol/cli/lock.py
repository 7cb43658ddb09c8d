"""The command ``sharedvol lock``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from sharedvol.cli.common import Commands, add_command, fail, seconds
from sharedvol.errors import LockError, LockTimeout, SharedVolError
from sharedvol.locks import FileLock

EXIT_LOCK_FILE = 74  # EX_IOERR of sysexits.h
EXIT_TIMEOUT = 75  # EX_TEMPFAIL: try again later
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128
TOKEN_VARIABLE = "SHAREDVOL_LOCK_TOKEN"
"""The environment variable that holds the fencing token for the command."""

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "lock",
        "Run a command while holding a lock that Python, R and shell respect.\n\n"
        "Takes the flock(2) and the fcntl(2) lock on PATH. PATH is created if it is missing and never deleted.\n"
        "The command holds both locks as well: if this wrapper is killed, they last until the command ends.",
        "examples:\n"
        "  sharedvol lock /app/shared/locks/init.lock -- Rscript start.R\n"
        "  sharedvol lock /app/shared/locks/index.lock --shared --timeout 5 -- ./read-index\n"
        "  sharedvol lock /app/shared/locks/load.lock --fenced --purpose 'nightly load' -- \\\n"
        "      sh -c './load --token $SHAREDVOL_LOCK_TOKEN'\n\n"
        "exit codes: the command's own, or\n"
        "  2    wrong usage\n"
        "  74   the lock file cannot be opened or locked, or the lock was lost while the command ran\n"
        "  75   the lock was not free before the timeout\n"
        "  126  the command cannot be executed\n"
        "  127  the command was not found\n"
        "  128+n  the command was killed by signal n",
    )
    parser.add_argument("path", metavar="PATH", help="the lock file, which is not the data that it protects")
    parser.add_argument("--shared", action="store_true", help="hold the lock together with other shared holders")
    parser.add_argument(
        "--fenced", action="store_true", help="pass a fencing token to the command in SHAREDVOL_LOCK_TOKEN"
    )
    parser.add_argument(
        "--purpose",
        default="",
        metavar="TEXT",
        help="with --fenced: the purpose that `sharedvol status` shows, at most 200 characters",
    )
    parser.add_argument(
        "--allow-network", action="store_true", help="neither warn nor refuse if PATH is on a network file system"
    )
    parser.add_argument("--timeout", type=seconds, metavar="S", help="wait at most S seconds; 0 means do not wait")
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="the program and its arguments; the -- before it is optional"
    )
    parser.set_defaults(run=_run, fail=parser.error)


def _run(options: argparse.Namespace) -> int:
    if options.purpose and not options.fenced:
        options.fail("--purpose needs --fenced: a plain lock cannot record a purpose")
    try:
        lock = FileLock(
            options.path,
            timeout=options.timeout,
            shared=options.shared,
            fenced=options.fenced,
            purpose=options.purpose,
            allow_network=options.allow_network,
        )
    except ValueError as error:  # --fenced with --shared, a purpose that is too long
        options.fail(str(error))
    try:
        return run_locked(lock, options.command)
    except CannotRun as error:
        return fail(str(error), error.code)
    except LockTimeout as error:
        return fail(str(error), EXIT_TIMEOUT)
    except LockError as error:
        return fail(str(error), EXIT_LOCK_FILE)


def separate(arguments: Sequence[str]) -> list[str]:
    """Insert the optional ``--`` before the command of ``lock``, because the command's options are not ours."""
    given = list(arguments)
    if given[:1] != ["lock"]:
        return given
    place, paths = 1, 0
    while place < len(given) and given[place] != "--":
        if not given[place].startswith("-"):
            paths += 1
            if paths == 2:
                return [*given[:place], "--", *given[place:]]
        elif any(name.startswith(given[place]) for name in ("--timeout", "--purpose")):
            place += 1  # its value
        place += 1
    return given


class CannotRun(SharedVolError):
    """The command cannot be started.

    Attributes:
        code: the exit code of a shell in this case.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run_locked(lock: FileLock, command: Sequence[str]) -> int:
    """Run ``command`` while holding ``lock``, and return its exit code; 128 + n if signal n killed it.

    The command inherits the lock's descriptor. If this process is killed, the lock lasts as long as the command
    runs, so no other process can start meanwhile. The lock is released when the command ends, even if the command
    left a daemon behind that still has the descriptor. See flock(2).

    Args:
        lock: the lock to acquire, within its own timeout, and to release. If it is fenced, the environment variable
            ``SHAREDVOL_LOCK_TOKEN`` holds the command's token.
        command: the program and its arguments.

    Raises:
        LockTimeout, LockFileError: as `FileLock.acquire`.
        LockLostError: the lock was lost while the command ran.
        CannotRun: the program does not exist or is not executable.
    """
    with lock:
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        if lock.fenced:
            environment[TOKEN_VARIABLE] = str(lock.token)
        return _run_child(command, lock.fileno(), environment)


def _run_child(command: Sequence[str], descriptor: int, environment: dict[str, str]) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []
    in_foreground = _in_foreground()

    def forward(number: int, frame: FrameType | None) -> None:
        if number in _FROM_TERMINAL and in_foreground:
            return  # the terminal also sent it to the command
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
    """Return whether a terminal sends its signals to this process and so also to its children."""
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
