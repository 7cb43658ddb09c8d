"""A child that stops before each of its effectful calls, so that something can happen to it there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from support.torture import ptrace
from support.torture.calls import CLOSE, EFFECTS, NAMES, PAUSES, Call
from support.torture.seccomp import stop_before

LIMIT = 60
"""Seconds after which a child ends itself by SIGALRM: it hung. Nothing is measured by it."""


class Traced:
    """A forked child that does ``work``, and stops before each of ``calls``.

    Args:
        work: what it does; its result is the exit status.
        said: where its standard output and error go.
        calls: None for all.
        hasty: it does not pause between tries.
    """

    def __init__(
        self,
        work: Callable[[], int],
        said: BinaryIO | None = None,
        calls: Iterable[Call] | None = EFFECTS,
        hasty: bool = False,
    ) -> None:
        self.status: int | None = None
        """Its exit status once it ended, negative for a signal."""
        self.pid = fork(work, said, calls, traced=True, skipped=PAUSES if hasty else ())
        self._stopped = self.pid
        self._started = {self.pid}
        status = os.waitpid(self.pid, 0)[1]
        assert os.WIFSTOPPED(status), f"the child did not start: {status:#x}"
        ptrace.follow(self.pid)

    def next(self) -> bool:
        """Run to the next of the calls, and stop before it. False if it ended instead."""
        ptrace.go_on(self._stopped)
        while True:
            pid, status = self._wait()
            if not os.WIFSTOPPED(status):
                if pid == self.pid:
                    self.status = os.waitstatus_to_exitcode(status)
                    return False
                continue  # a thread, or a child of it
            if status >> 16 == ptrace.EVENT_SECCOMP:
                self._stopped = pid
                return True
            number = os.WSTOPSIG(status)
            first = number == signal.SIGSTOP and pid not in self._started
            self._started.add(pid)
            ptrace.go_on(pid, 0 if first or number == signal.SIGTRAP else number)

    @property
    def number(self) -> int:
        """The number of the call it is stopped before."""
        return int(ptrace.registers(self._stopped).orig_rax)

    @property
    def call(self) -> str:
        """The name of the call it is stopped before."""
        return NAMES.get(self.number, str(self.number))

    @property
    def file(self) -> str:
        """The name of the file that the call's first argument, a descriptor, is open on; empty if there is none."""
        with contextlib.suppress(OSError):
            return os.path.basename(os.readlink(f"/proc/{self._stopped}/fd/{ptrace.registers(self._stopped).rdi}"))
        return ""

    @property
    def may_fail(self) -> bool:
        """Whether the call can fail at all: close(2) reports what was written, and so nothing of a read-only file."""
        if self.number != CLOSE:
            return True
        fd = ptrace.registers(self._stopped).rdi
        try:
            words = Path(f"/proc/{self._stopped}/fdinfo/{fd}").read_text().split()
        except FileNotFoundError:
            return False
        return int(words[words.index("flags:") + 1], 8) & os.O_ACCMODE != os.O_RDONLY

    def fail(self, error: int) -> None:
        """The call it is stopped before fails. Of close(2) only the report does, as in the kernel."""
        if self.number == CLOSE:
            self._end_call()
            values = ptrace.registers(self._stopped)
        else:
            values = ptrace.registers(self._stopped)
            values.orig_rax = 2**64 - 1  # no call, and the result is what we say
        values.rax = 2**64 - error
        ptrace.set_registers(self._stopped, values)

    def fail_though_done(self, error: int) -> None:
        """The call it is stopped before is made, and reported as failed: a network file system's lost answer."""
        self._end_call()
        values = ptrace.registers(self._stopped)
        values.rax = 2**64 - error
        ptrace.set_registers(self._stopped, values)

    def kill(self) -> None:
        """SIGKILL, where it is stopped: the call is not made. With its threads and children, as a container dies."""
        os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = self._wait()
                if pid == self.pid and not os.WIFSTOPPED(status):
                    self.status = os.waitstatus_to_exitcode(status)
        assert self.status == -signal.SIGKILL, f"it was not killed: {self.status}"

    def _end_call(self) -> None:
        ptrace.go_on(self._stopped, to_exit=True)
        pid, status = os.waitpid(self._stopped, ptrace.WAIT_ALL)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP | 0x80, f"{pid}: {status:#x}"

    def _wait(self) -> tuple[int, int]:
        return os.waitpid(-self.pid, ptrace.WAIT_ALL)  # its process group: nobody else's children


def fork(
    work: Callable[[], int],
    said: BinaryIO | None,
    calls: Iterable[Call] | None = None,
    traced: bool = False,
    skipped: Iterable[int] = (),
) -> int:
    """A child, in a process group of its own, that does ``work`` and ends with its result. Returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        if said is not None:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            # The test runner has put others in their place.
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        if traced:
            ptrace.trace_me()
            os.kill(os.getpid(), signal.SIGSTOP)
            stop_before(calls, skipped)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(work: Callable[[], int], said: BinaryIO | None = None) -> int:
    """Do ``work`` in a child to its end. Returns its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work, said), 0)[1])
