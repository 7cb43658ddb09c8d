"""Run uvicorn with several workers, as ``uvicorn APP --workers N`` does, with three faults fixed.

::

    python -m sharedvol.integrations.uvicorn shop.app:app --workers 4

uvicorn's parent process ends with status 0 when a worker cannot start (and older releases start it again and again),
so ``restart: on-failure`` does not notice the failure. This one ends with 3. While uvicorn's parent process waits for a
worker, at SIGHUP, SIGTTOU or the stop, it handles no signal. Here SIGTERM reaches every worker at once, and a second
SIGTERM ends their drain. With one worker there is no parent process, and nothing differs.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Final

from uvicorn.supervisors import Multiprocess, multiprocess

from sharedvol.integrations.process import START_UP_FAILED, start_thread

_log = logging.getLogger("uvicorn.error")
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Worker(multiprocess.Process):
    """A worker process. The first SIGTERM is sent only once, although several parts of the parent process send it.

    Attributes:
        running: the workers of this process that were started and not yet waited for.
    """

    running: ClassVar[list[Worker]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _signalled = False

    def start(self) -> None:
        """Start the process."""
        super().start()
        self.running.append(self)

    def terminate(self) -> None:
        """Send SIGTERM, unless it was sent before."""
        with self._lock:
            first, self._signalled = not self._signalled, True
            if first:
                super().terminate()

    def join(self) -> None:
        """Wait for the end of the process."""
        super().join()
        with contextlib.suppress(ValueError):
            self.running.remove(self)

    def wait_until_ready(self, timeout: float, should_exit: threading.Event | None = None) -> bool:
        """Wait as uvicorn does, but do not kill the worker at a stop: it may serve, and stops with the others."""
        ready = super().wait_until_ready(timeout, should_exit)
        return ready or (should_exit is not None and should_exit.is_set() and self.process.is_alive())

    def send(self, number: int, *, again: bool) -> None:
        """Send a signal, from any thread. Without ``again``, send it only to a worker that has not had a SIGTERM."""
        with self._lock:
            first, self._signalled = not self._signalled, True
            if (first or again) and self.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid, number)


class Supervisor(Multiprocess):
    """The parent process of the workers."""

    def __init__(self, config: Any, *args: Any, **more: Any) -> None:
        super().__init__(config, *args, **{**more, **_checked(more)})
        self._cannot_start = False
        # A signal handler interrupts the main thread anywhere, so it may only call reentrant functions.
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        start_thread(self._pass_on, "stop")
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def run(self) -> None:
        """Run until a signal stops the server, or a worker cannot start.

        Raises:
            SystemExit: a worker could not start.
        """
        super().run()
        if self._cannot_start or _any_failed(self.processes):
            sys.exit(START_UP_FAILED)

    def keep_subprocess_alive(self) -> None:
        """Replace workers that ended, but stop if one could not start."""
        workers = list(self.processes)
        super().keep_subprocess_alive()
        if _any_failed(workers):
            _log.error("a worker could not start: stopping")
            self._cannot_start = True
            self.should_exit.set()

    def restart_all(self) -> None:
        """Replace the workers one by one, until a signal stops the server."""
        workers = self.processes
        for index, old in enumerate(workers):
            if self.should_exit.is_set():
                break
            self.processes = [old]
            super().restart_all()
            workers[index] = self.processes[0]
            if workers[index] is old:  # its successor did not become ready
                break
        self.processes = workers

    def _handle(self, number: int, _: object) -> None:
        self.signal_queue.append(number)
        self._arrived.put(number)

    def _pass_on(self) -> None:
        """Forward signals to every worker. This runs in a thread, because the main thread may wait for a worker."""
        again = False
        while True:
            number = self._arrived.get()
            self.should_exit.set()
            for worker in tuple(Worker.running):
                worker.send(number if again else signal.SIGTERM, again=again)
            again = True


class _StartOrFail:
    """The main function of a worker. uvicorn before 0.47 ends a worker that could not start with status 0."""

    def __init__(self, run: Callable[..., object]) -> None:
        self._run = run

    def __call__(self, sockets: Any = None) -> None:
        self._run(sockets)
        if not getattr(getattr(self._run, "__self__", None), "started", True):
            sys.exit(START_UP_FAILED)


def _any_failed(workers: list[Any]) -> bool:
    return any(worker.process.exitcode == START_UP_FAILED for worker in workers)


def _checked(more: dict[str, Any]) -> dict[str, Any]:
    return {"target": _StartOrFail(more["target"])} if "target" in more else {}


def main() -> None:
    """Run the command line of uvicorn."""
    command = importlib.import_module("uvicorn.main")
    command.Multiprocess = Supervisor  # type: ignore[attr-defined]
    multiprocess.Process = Worker  # type: ignore[misc]
    command.main(prog_name="uvicorn")


if __name__ == "__main__":
    main()
