"""Start the commands, so that Ctrl-C ends them with one line and exit code 130, without a traceback.

This package imports nothing of ours, because importing `sharedvol` takes longer than most commands run. Annotations
that need a module are in quotes, because ``from __future__`` would be one more import.
"""

import os
import sys

EXIT_MISSING = 1
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT: 128 plus its number


def _say(program: str, text: str) -> None:
    try:  # noqa: SIM105 # contextlib would be one more import
        os.write(2, f"{program}: {text}\n".encode())
    except OSError:
        pass  # the exit code shows it as well


def _end_early(number: int = 0, frame: object = None) -> None:
    _say(os.path.basename(sys.argv[0]), "interrupted")
    os._exit(EXIT_INTERRUPTED)


try:
    import signal
    from importlib import import_module

    # Until `run` handles it. Only for the commands, so that a program that imports this keeps its own handler.
    _is_command = os.path.basename(sys.argv[0]) in ("sharedvol", "sharedvol-sidecar")
    if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_early)
except KeyboardInterrupt:
    _end_early()

TYPE_CHECKING = False  # importing typing would add a quarter to the time
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any


class Interrupted(SystemExit):
    """Ends the command on Ctrl-C and releases what it holds. As a `SystemExit`, it prints no traceback."""


def library() -> int:
    """Run ``sharedvol``. Return its exit code."""
    return run("sharedvol", lambda: import_module("sharedvol.cli").main)


def sidecar() -> int:
    """Run ``sharedvol-sidecar``. Return its exit code."""
    return run("sharedvol-sidecar", lambda: import_module("sharedvol_sidecar.cli").main, extra="sidecar")


def run(program: str, load: "Callable[[], Callable[[], Any]]", *, extra: str = "") -> int:
    """Run a command. Return its exit code, which is 130 after Ctrl-C.

    Before the command begins and after it has ended, Ctrl-C ends the process at once. In between it raises
    `Interrupted`, and a second one ends the process.

    Args:
        program: the name that messages begin with.
        load: imports the command and returns it.
        extra: the optional dependencies that the command needs.
    """
    interrupts = _Interrupts(program)
    _open_standard_streams()
    try:
        return interrupts.run(load())
    except ModuleNotFoundError as error:
        if not extra or not error.name or error.name.startswith("sharedvol"):
            raise
        _say(program, f"{error.name} is not installed; install sharedvol[{extra}]")
        return EXIT_MISSING


class _Interrupts:
    """Handles SIGINT, unless the process was started with SIGINT ignored, as nohup does."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._code: int | None = None
        self._reported = False
        self._handles = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end_early)
        if self._handles:
            signal.signal(signal.SIGINT, self._end)
            sys.unraisablehook = self._unraisable

    def run(self, command: "Callable[[], Any]") -> int:
        """Run the command with Ctrl-C raising `Interrupted`. Return its exit code."""
        try:
            if self._handles:
                signal.signal(signal.SIGINT, self._raise)
            self._code = _code_of(command)
        except Interrupted:
            self._report()
            self._code = EXIT_INTERRUPTED
        if self._handles:
            signal.signal(signal.SIGINT, self._end)
        return self._code

    def _raise(self, number: int, frame: "FrameType | None") -> None:
        signal.signal(signal.SIGINT, self._end)
        raise Interrupted(EXIT_INTERRUPTED)

    def _end(self, number: int = 0, frame: "FrameType | None" = None) -> None:
        if self._code is None:
            self._report()
        os._exit(EXIT_INTERRUPTED if self._code is None else self._code)

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            _say(self._program, "interrupted")

    def _unraisable(self, args: "Any") -> None:
        if args.exc_type is Interrupted:  # raised in a destructor or a callback, where it unwinds nothing
            self._end()
        sys.__unraisablehook__(args)


def _code_of(command: "Callable[[], Any]") -> int:
    try:
        code = command()
    except Interrupted:
        raise
    except SystemExit as end:
        code = end.code
    return int(code or 0)


def _open_standard_streams() -> None:
    """Open the null device as each closed standard stream, so that no other file gets its number and our output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
