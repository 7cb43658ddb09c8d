"""gunicorn, with any worker class: the master migrates once and drains, each worker joins.

In ``gunicorn.conf.py``::

    from sharedvol.integrations.gunicorn import hooks
    from shop.service import service  # a module of its own: the application is imported in the workers

    globals().update(hooks(service))

The master is the one that knows whether the replica stops: a worker gets SIGTERM also when it is replaced
(``SIGHUP``), and then the replica must stay ready. So the master waits between SIGTERM and its own shutdown, and
tells its workers by a byte of memory that they share.
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

from sharedvol.integrations.background import start_thread
from sharedvol.integrations.process import START_UP_FAILED
from sharedvol.integrations.service import Service

_STOPPED: Final = 128 + signal.SIGTERM
_LOOK_SECONDS: Final = 0.1


def hooks(service: Service) -> dict[str, Callable[..., None]]:
    """The server hooks, by their names in gunicorn's settings.

    Where a configuration has a hook of the same name, let it call the one from here.

    Args:
        service: the one that the application uses; from a module that both import.
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
        self._told = mmap.mmap(-1, 1)  # anonymous and shared: what the master writes, its children read
        self._told[0] = service.draining  # SIGHUP reads the configuration again, maybe in the middle of a drain
        service.drain_when(self._is_told)

    def _is_told(self) -> bool:
        return self._told[0] != 0

    def on_starting(self, server: Any) -> None:
        """In the master, before it listens: join, and migrate. A failure ends it with status 3."""
        try:
            told_to_stop = _wait_for(lambda: self._service.start(wait=True))
        except Exception as error:
            server.log.critical("Start-up failed: %s", error)
            _forget_pidfile(server)
            raise SystemExit(START_UP_FAILED) from error
        if told_to_stop:
            server.log.info("SIGTERM during the start-up: stopping")
            _forget_pidfile(server)
            os.kill(os.getpid(), signal.SIGTERM)
            raise SystemExit(_STOPPED)  # the kernel spares process 1 of a container

    def when_ready(self, server: Any) -> None:
        """In the master: stand before its own answer to SIGTERM."""
        shut_down = type(server).handle_term.__get__(server)
        arrivals = _Arrivals.of_this_process()

        def handle_term() -> None:
            arrivals.pending = False
            if self._is_told() or self._service.drain == 0 or _has_other_master(server):
                shut_down()
                return
            server.log.info("Draining: not ready any more, requests are answered for %g s", self._service.drain)
            self._told[0] = 1
            end = threading.Timer(self._service.drain, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()

        server.handle_term = handle_term
        server.log.info(
            "At SIGTERM: %g s of drain, then up to %g s for requests under way; let stop_grace_period be longer",
            self._service.drain,
            server.cfg.graceful_timeout,
        )

    def on_reload(self, server: Any) -> None:
        """In the master, at SIGHUP: the new code may have brought new migrations. A failure ends all, with status 3."""
        self.when_ready(server)
        arrivals = _Arrivals.of_this_process()
        try:
            told_to_stop = _wait_for(self._service.run_migrations, arrivals)
        except Exception as error:
            from gunicorn.errors import HaltServer  # type: ignore[import-untyped, unused-ignore]

            raise HaltServer(f"Migrations failed: {error}", START_UP_FAILED) from error
        if told_to_stop and not arrivals.pending:  # else gunicorn has it already, and a second one would end the drain
            os.kill(os.getpid(), signal.SIGTERM)

    def post_fork(self, server: Any, worker: Any) -> None:
        """In a worker: join by itself, as nothing of the master's part came along."""
        # Until the worker has its own handlers it has the master's, which would swallow the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._service.start()

    def pre_request(self, worker: Any, request: Any) -> None:
        """In a worker: during the drain answers close their connection, which no header of a WSGI application does."""
        if self._service.draining:
            request.must_close = True

    def worker_exit(self, server: Any, worker: Any) -> None:
        """In a worker that ends: leave. gunicorn calls it in the master, too, for a worker that is gone."""
        if os.getpid() == worker.pid:
            self._service.stop()


class _Arrivals:
    """Stands before gunicorn's handler of SIGTERM, which only queues it: a reload would not see what is queued.

    Attributes:
        pending: whether one has come that gunicorn has not acted on.
    """

    def __init__(self, previous: Any) -> None:
        self.pending = False
        self._previous = previous

    @classmethod
    def of_this_process(cls) -> _Arrivals:
        """The one that stands there; from now on, if none does."""
        handler = signal.getsignal(signal.SIGTERM)
        there = getattr(handler, "__self__", None)
        if isinstance(there, cls):
            return there
        made = cls(handler)
        signal.signal(signal.SIGTERM, made._handle)
        return made

    @property
    def cfg(self) -> Any:
        """The settings of the arbiter, in which `sharedvol.logs.owner` finds the workers' user."""
        return getattr(getattr(self._previous, "__self__", None), "cfg", None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        self._previous(number, frame)


def _wait_for(work: Callable[[], object], arrivals: _Arrivals | None = None) -> bool:
    """Do ``work`` in a thread, which may wait for a lock on a server; True if SIGTERM came before it was done.

    What is left then ends with the process, as by a kill: no harm, the next replica goes on.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    told: list[int] = []

    def run() -> None:
        try:
            work()
            ends.put(None)
        except BaseException as error:
            ends.put(error)

    def handle(number: int, frame: object) -> None:
        told.append(number)
        ends.put(None)  # re-entrant, as the handler interrupts the get below

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        if arrivals is not None and arrivals.pending:  # before we stood here
            return True
        start_thread(run, "start-up")
        error = _next(ends)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if error is not None:
        raise error
    return bool(told)


def _has_other_master(server: Any) -> bool:
    """Whether there are two masters on one port, after SIGUSR2: the replica then stays when one of them ends."""
    return bool(server.reexec_pid) or server.master_pid == os.getppid()


def _next(ends: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        # A signal that comes just before the kernel puts us to sleep does not wake us, and Python runs its handler only
        # when something else does.
        with contextlib.suppress(queue.Empty):
            return ends.get(timeout=_LOOK_SECONDS)


def _forget_pidfile(server: Any) -> None:
    if server.pidfile is not None:
        server.pidfile.unlink()
