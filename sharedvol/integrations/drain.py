"""The drain: the time between SIGTERM and the server's own shutdown.

A server closes its port at once when it gets SIGTERM. The load balancer notices that at its next health check, seconds
later, and until then it sends requests to a port that refuses them. So the server's handler of SIGTERM is called later.
Before that, the readiness check fails while the server still accepts requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any, Final

from sharedvol.integrations.process import start_thread
from sharedvol.integrations.servers import CLOSE_FIRST, REMEDIES, server_name

_STOPPED: Final = 128 + signal.SIGTERM
_Handler = Callable[[int, FrameType | None], None]
_log = logging.getLogger(__name__)


class SigtermGate:
    """A handler of SIGTERM that delays the signal before it calls the handler installed before.

    The first SIGTERM is delayed for ``seconds``. A second one from any sender passes at once. SIGINT is not delayed,
    because a user who presses Ctrl-C does not want to wait.

    Args:
        seconds: the delay.
        begin: called in the signal handler for the first SIGTERM, so it must not acquire a lock. Returns whether to
            delay.

    Attributes:
        passed: whether the signal has reached the previous handler.
    """

    def __init__(self, seconds: float, begin: Callable[[], bool]) -> None:
        self._seconds, self._begin = seconds, begin
        self._pid = os.getpid()
        self._begun = False
        self.passed = False
        self._previous: Any = None
        self._handler: _Handler = self._handle
        # The handler interrupts the main thread anywhere, so everything it calls must be reentrant. SimpleQueue.put is
        # reentrant. Starting a thread is not, so the waiting thread is started when the gate is installed.
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def install(self) -> bool:
        """Install the handler. Return False outside the main thread, or if SIGTERM is ignored."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._previous = signal.getsignal(signal.SIGTERM)
        if self._previous is None or self._previous == signal.SIG_IGN:
            _log.warning("SIGTERM is handled outside of Python or ignored: this process will not drain")
            return False
        if self._server is not None:
            self._handler = _method_of(self._server, self._handle)
        start_thread(self._wait, "drain")
        signal.signal(signal.SIGTERM, self._handler)
        return True

    @property
    def opened(self) -> bool:
        """Whether the server must stop, which includes a SIGTERM that arrived before this gate was installed."""
        return self.passed or bool(getattr(self._server, "should_exit", False))

    @property
    def reloads(self) -> bool:
        """Whether the server restarts when a file is saved. A developer who saved one does not want to wait."""
        return bool(getattr(self._config, "should_reload", False))

    @property
    def ends_after(self) -> int | None:
        """The number of requests after which uvicorn ends this process, if no other process shares its port."""
        alone = getattr(self._config, "workers", None) == 1
        return getattr(self._config, "limit_max_requests", None) if alone else None

    @property
    def in_place(self) -> bool:
        """Whether this is still the handler of SIGTERM, and no server has set its own since."""
        return signal.getsignal(signal.SIGTERM) == self._handler

    @property
    def _config(self) -> object:
        return getattr(self._server, "config", None)

    @property
    def _server(self) -> object:
        return getattr(self._previous, "__self__", None)  # the previous handler is uvicorn.Server.handle_exit

    def remove(self) -> None:
        """Restore the previous handler, unless another one was installed since."""
        self._orders.put(False)
        if os.getpid() != self._pid or threading.current_thread() is not threading.main_thread():
            return
        if self.in_place:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A forked child has the handler but not the thread, so the signal passes at once.
        if self._begun or os.getpid() != self._pid or not self._begin():
            self._orders.put(False)
            self._pass_on(number, frame)
            return
        self._begun = True
        self._orders.put(True)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.passed = True
        if callable(self._previous):
            self._previous(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        if server_name(frame) == "waitress":
            raise SystemExit(0)  # waitress then finishes the current requests
        os.kill(os.getpid(), number)
        raise SystemExit(_STOPPED)  # for process 1 of a container, which the kernel does not kill

    def _wait(self) -> None:
        if not self._orders.get():
            return
        _log.info("SIGTERM: not ready any more; requests are answered for another %g s", self._seconds)
        with contextlib.suppress(queue.Empty):
            self._orders.get(timeout=self._seconds)
            return
        os.kill(self._pid, signal.SIGTERM)


class Gates:
    """The gates of one process: one for each server that has set its own handler of SIGTERM.

    Args:
        seconds: see `SigtermGate`.
        begin: see `SigtermGate`.
        has_master: returns whether another process decides when this one drains, so that no gate is needed.
    """

    def __init__(self, seconds: float, begin: Callable[[], bool], has_master: Callable[[], bool]) -> None:
        self._seconds, self._begin, self._has_master = seconds, begin, has_master
        self._warned = False
        self._gates: list[SigtermGate] = []
        self._passed = False

    def __len__(self) -> int:
        return len(self._gates)

    @property
    def passed(self) -> bool:
        """Whether the signal has passed one of the gates. Another server that gets it then does not need to wait."""
        return self._passed or any(gate.passed for gate in self._gates)

    @property
    def opened(self) -> bool:
        """Whether a server must stop."""
        return any(gate.opened for gate in self._gates)

    @property
    def reloads(self) -> bool:
        """Whether a server restarts when a file is saved."""
        return any(gate.reloads for gate in self._gates)

    def add(self) -> SigtermGate | None:
        """Install a gate before the current handler, unless that is a gate already or a gate would have no effect."""
        if self._has_master() or any(gate.in_place for gate in self._gates):
            return None
        if server_name() in CLOSE_FIRST:
            self.warn_if_none()
            return None
        if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
            _log.warning(
                "each gunicorn worker drains by itself, also when it is only replaced, and graceful_timeout must be "
                "longer than drain=%g: use sharedvol.integrations.gunicorn.hooks",
                self._seconds,
            )
        gate = SigtermGate(self._seconds, self._begin)
        if not gate.install():
            return None
        self._gates.append(gate)
        if gate.ends_after:
            _log.warning(
                "uvicorn --limit-max-requests=%d ends this process without a drain: use --workers 2 or more, "
                "which share the port",
                gate.ends_after,
            )
        return gate

    def warn_if_none(self) -> None:
        """Log one warning, with the server's name and the remedy, if nothing drains this process at SIGTERM."""
        if self._warned or self._gates or self._has_master():
            return
        self._warned = True
        name = server_name()
        if name is not None:
            _log.warning("%s does not drain this replica at SIGTERM: %s", name, REMEDIES[name])

    def remove(self, gate: SigtermGate) -> None:
        """Remove one of the gates."""
        gate.remove()
        self._passed = self.passed
        self._gates.remove(gate)

    def clear(self) -> None:
        """Remove all gates, the newest first."""
        for gate in reversed(tuple(self._gates)):
            self.remove(gate)
        self._passed = False


def _method_of(owner: object, handle: _Handler) -> _Handler:
    """Return ``handle`` as a method of ``owner``.

    Libraries find the server as the owner of the handler of SIGTERM. For example, sse-starlette ends its streams when
    that object's ``should_exit`` is true.
    """

    def method(_owner: object, number: int, frame: FrameType | None) -> None:
        handle(number, frame)

    return MethodType(method, owner)
