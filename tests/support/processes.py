"""Child processes for the tests: started, spoken to, killed and reaped, every wait bounded."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from sharedvol import FileLock, LockTimeout

LIMIT = 60.0
"""Seconds that anything may take before the test is given up. Nothing is measured by it."""


class Child:
    """A forked child that runs ``work(connection)`` and ends; use it in a ``with``, which reaps it."""

    def __init__(self, work: Callable[[Connection], object]) -> None:
        self.connection, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                self.connection.close()
                work(theirs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        self._watch = os.pidfd_open(self.pid)
        self._killed = False
        self.status: int | None = None

    def receive(self) -> Any:
        """What the child sent next."""
        assert self.connection.poll(LIMIT), f"child {self.pid} said nothing"
        return self.connection.recv()

    def send(self, message: object) -> None:
        """Give the child something to receive."""
        self.connection.send(message)

    def ask(self, message: object) -> Any:
        """`send`, then `receive`."""
        self.send(message)
        return self.receive()

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._watch, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Reap, and return the exit status: negative for a signal."""
        if self.status is None:
            poll = select.poll()
            poll.register(self._watch, select.POLLIN)
            ended = poll.poll(LIMIT * 1000)
            if not ended:
                signal.pidfd_send_signal(self._watch, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            assert ended, f"child {self.pid} did not end"
        return self.status

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.kill()
            elif not self._killed:
                assert self.wait() == 0, f"child failed with status {self.status}"
        finally:
            os.close(self._watch)
            self.connection.close()


def run_forked(work: Callable[[], object]) -> Any:
    """What ``work`` returns in a forked child."""
    with Child(lambda connection: connection.send(work())) as child:
        return child.receive()


def run_python(code: str, *args: str, **environment: str) -> str:
    """What a fresh interpreter prints when it runs ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again until ``condition``, which something else brings about, is true.

    The pause between two looks grows to a tenth of the time waited so far, and to 10 ms: each look costs CPU time that
    the other process needs.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < LIMIT, f"waited in vain for: {what}"
        time.sleep(min(max(waited / 10, 0.001), 0.01))


def idle() -> NoReturn:
    """Run the handlers of signals, for ever. Not signal.pause(), which sleeps on if one comes just before it."""
    while True:
        time.sleep(0.01)


def blocked(path: str | os.PathLike[str]) -> int:
    """How many wait in the kernel for a lock of ``path``: the ``->`` lines of proc_locks(5)."""
    inode = os.stat(path).st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(1 for line in lines if "->" in line and f":{inode} " in line)


def wait_blocked(path: str | os.PathLike[str], count: int = 1) -> None:
    """Until ``count`` wait in the kernel for ``path``."""
    wait_until(lambda: blocked(path) == count, f"{count} blocked on {path}, not {blocked(path)}")


def descriptors(path: str | os.PathLike[str]) -> int:
    """How many descriptors this process has open on ``path``."""
    wanted = os.path.realpath(path)
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found += os.readlink(f"/proc/self/fd/{name}") == wanted
    return found


def is_free(path: str | os.PathLike[str], *, shared: bool = False) -> bool:
    """Whether another process could take the lock of ``path`` now."""

    def look() -> bool:
        try:
            FileLock(path, timeout=0, shared=shared).acquire()
        except LockTimeout:
            return False
        return True

    return bool(run_forked(look))


def has_permission_to_mount() -> bool:
    """Whether a mount namespace of our own can be made: root with CAP_SYS_ADMIN."""
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, timeout=LIMIT, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


@contextlib.contextmanager
def reaped(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Kill and reap ``process`` at the end of the block."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(LIMIT)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
