"""Hooks for gunicorn with any worker class: the master migrates once and drains, and each worker joins.

In ``gunicorn.conf.py``::

    from sharedvol.integrations.gunicorn import hooks
    from shop.service import service  # a module of its own: the application is imported in the workers

    globals().update(hooks(service))

Only the master knows whether the replica stops: a worker also gets SIGTERM when it is replaced (``SIGHUP``), and then
the replica must stay ready. So the master drains between SIGTERM and its own shutdown, and signals its workers by a
byte of shared memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from sharedvol.integrations.process import START_UP_FAILED, start_thread
from sharedvol.integrations.service import Service

_STOPPED: Final = 128 + signal.SIGTERM
_POLL_SECONDS: Final = 0.1


def hooks(service: Service) -> dict[str, Callable[..., None]]:
    """Return the server hooks, by their names in gunicorn's settings.

    If a configuration has a hook of the same name, let it call the hook from here.

    Args:
        service: the service of the application, from a module that both the configuration and the application import.
    """
    made = _Hooks(service)
    return {
        "on_starting": made.on_starting,
        "when_ready": made.when_ready,
        "on_reload": made.on_reload,
        "post_fork": made.post_fork,
        "pre_request": made.pre_request,
        "worker_exit": made.worker_exit,
    }


class _Hooks:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._drain = mmap.mmap(-1, 1)  # anonymous and shared: the workers read what the master writes
        self._drain[0] = service.draining  # SIGHUP reads the configuration again, perhaps during a drain
        service.drain_when(self._is_draining)

    def _is_draining(self) -> bool:
        return self._drain[0] != 0

    def on_starting(self, server: Any) -> None:
        """In the master, before it listens: join and migrate. A failure ends the master with status 3."""
        try:
            interrupted = _wait_for(lambda: self._service.start(wait=True))
        except Exception as error:
            server.log.critical("Start-up failed: %s", error)
            _forget_pidfile(server)
            raise SystemExit(START_UP_FAILED) from error
        if interrupted:
            server.log.info("SIGTERM during the start-up: stopping")
            _forget_pidfile(server)
            os.kill(os.getpid(), signal.SIGTERM)
            raise SystemExit(_STOPPED)  # for process 1 of a container, which the kernel does not kill

    def when_ready(self, server: Any) -> None:
        """In the master: drain before its own answer to SIGTERM."""
        shut_down = type(server).handle_term.__get__(server)
        arrivals = _Arrivals.of_this_process()

        def handle_term() -> None:
            arrivals.pending = False
            if self._is_draining() or self._service.drain == 0 or _has_other_master(server):
                shut_down()
                return
            server.log.info("Draining: not ready any more, requests are answered for %g s", self._service.drain)
            self._drain[0] = 1
            end = threading.Timer(self._service.drain, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()

        server.handle_term = handle_term
        server.log.info(
            "At SIGTERM: %g s of drain, then up to %g s for current requests; set a longer stop_grace_period",
            self._service.drain,
            server.cfg.graceful_timeout,
        )

    def on_reload(self, server: Any) -> None:
        """In the master, at SIGHUP: run migrations, because new code may have some. A failure ends with status 3."""
        self.when_ready(server)
        arrivals = _Arrivals.of_this_process()
        try:
            interrupted = _wait_for(self._service.run_migrations, arrivals)
        except Exception as error:
            from gunicorn.errors import HaltServer  # type: ignore[import-untyped, unused-ignore]

            raise HaltServer(f"Migrations failed: {error}", START_UP_FAILED) from error
        if interrupted and not arrivals.pending:  # a pending signal is gunicorn's; a second one would end the drain
            os.kill(os.getpid(), signal.SIGTERM)

    def post_fork(self, server: Any, worker: Any) -> None:
        """In a worker: join, because a fork does not inherit the master's membership."""
        # Until the worker sets its own handlers it has those of the master, which would swallow the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._service.start()

    def pre_request(self, worker: Any, request: Any) -> None:
        """In a worker: close connections during the drain, which a header of a WSGI application cannot do."""
        if self._service.draining:
            request.must_close = True

    def worker_exit(self, server: Any, worker: Any) -> None:
        """In a worker that ends: leave. gunicorn also calls it in the master, for a worker that has ended."""
        if os.getpid() == worker.pid:
            self._service.stop()


class _Arrivals:
    """A handler of SIGTERM before that of gunicorn, which only queues the signal, so that a reload would miss it.

    Attributes:
        pending: whether a SIGTERM has arrived that gunicorn has not handled.
    """

    def __init__(self, previous: Any) -> None:
        self.pending = False
        self._previous = previous

    @classmethod
    def of_this_process(cls) -> _Arrivals:
        """Return the installed handler, or install one."""
        handler = signal.getsignal(signal.SIGTERM)
        there = getattr(handler, "__self__", None)
        if isinstance(there, cls):
            return there
        made = cls(handler)
        signal.signal(signal.SIGTERM, made._handle)
        return made

    @property
    def cfg(self) -> Any:
        """The settings of the arbiter, where `sharedvol.logs.owner` finds the user of the workers."""
        return getattr(getattr(self._previous, "__self__", None), "cfg", None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        self._previous(number, frame)


def _wait_for(work: Callable[[], object], arrivals: _Arrivals | None = None) -> bool:
    """Run ``work`` in a thread, because it may wait for a lock on a server. Return True if SIGTERM interrupts it.

    Unfinished work then ends with the process, as after a kill, and the next replica resumes it.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    signals: list[int] = []

    def run() -> None:
        try:
            work()
            ends.put(None)
        except BaseException as error:
            ends.put(error)

    def handle(number: int, frame: object) -> None:
        signals.append(number)
        ends.put(None)  # this is reentrant, because the handler interrupts the get below

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        if arrivals is not None and arrivals.pending:  # it arrived before the handler was set
            return True
        start_thread(run, "start-up")
        error = _next(ends)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if error is not None:
        raise error
    return bool(signals)


def _has_other_master(server: Any) -> bool:
    """Return whether two masters share the port, after SIGUSR2. The replica then stays when one of them ends."""
    return bool(server.reexec_pid) or server.master_pid == os.getppid()


def _next(ends: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        # A signal that arrives just before this thread sleeps does not wake it, and Python runs the handler only when
        # the thread wakes.
        with contextlib.suppress(queue.Empty):
            return ends.get(timeout=_POLL_SECONDS)


def _forget_pidfile(server: Any) -> None:
    if server.pidfile is not None:
        server.pidfile.unlink()
