"""Time between SIGTERM and the server's own shutdown, in which the load balancer learns that we are going.

A server that is told to stop closes its port at once. The load balancer hears of it from its next health check,
seconds later; until then it sends requests to a port that refuses them. So the server's handler of SIGTERM is
called later: first the readiness check says no, while requests are taken as before.
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

from sharedvol.integrations.background import start_thread
from sharedvol.integrations.servers import CLOSE_FIRST, REMEDIES, server_name

_STOPPED: Final = 128 + signal.SIGTERM
_Handler = Callable[[int, FrameType | None], None]
_log = logging.getLogger(__name__)


class SigtermGate:
    """Stands before the handler of SIGTERM that is installed now, and lets the signal through later.

    The first SIGTERM is held back for ``seconds``; a second one, of whoever, opens the gate at once. SIGINT passes
    beside it: who presses Ctrl-C does not want to wait.

    Args:
        seconds: how long.
        begin: called in the signal handler for the first SIGTERM, so it must take no lock; says whether to wait.

    Attributes:
        passed: whether the signal has been let through.
    """

    def __init__(self, seconds: float, begin: Callable[[], bool]) -> None:
        self._seconds, self._begin = seconds, begin
        self._pid = os.getpid()
        self._begun = False
        self.passed = False
        self._previous: Any = None
        self._handler: _Handler = self._handle
        # The handler runs wherever the main thread is, so what it uses must be re-entrant: SimpleQueue.put is, and
        # the start of a thread is not, hence the thread that waits from the beginning.
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def install(self) -> bool:
        """Begin to stand there; False where that cannot be: not the main thread, or SIGTERM is ignored."""
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
        """Return whether the server is to stop, also because of a SIGTERM that came before this gate was installed."""
        return self.passed or bool(getattr(self._server, "should_exit", False))

    @property
    def reloads(self) -> bool:
        """Whether the server is started anew when a file is saved: who has just saved one does not want to wait."""
        return bool(getattr(self._config, "should_reload", False))

    @property
    def ends_after(self) -> int | None:
        """The number of requests after which uvicorn ends this process though no other one shares its port."""
        alone = getattr(self._config, "workers", None) == 1
        return getattr(self._config, "limit_max_requests", None) if alone else None

    @property
    def in_place(self) -> bool:
        """Whether SIGTERM comes here, and not to a server that has set its own handler since."""
        return signal.getsignal(signal.SIGTERM) == self._handler

    @property
    def _config(self) -> object:
        return getattr(self._server, "config", None)

    @property
    def _server(self) -> object:
        return getattr(self._previous, "__self__", None)  # the previous handler is uvicorn.Server.handle_exit

    def remove(self) -> None:
        """Stand there no more, if nobody has taken the place since."""
        self._orders.put(False)
        if os.getpid() != self._pid or threading.current_thread() is not threading.main_thread():
            return
        if self.in_place:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A forked child has the handler and not the thread: for it the signal goes on at once.
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
            raise SystemExit(0)  # waitress then finishes the requests under way
        os.kill(os.getpid(), number)
        raise SystemExit(_STOPPED)  # the kernel spares process 1 of a container

    def _wait(self) -> None:
        if not self._orders.get():
            return
        _log.info("SIGTERM: not ready any more; requests are answered for another %g s", self._seconds)
        with contextlib.suppress(queue.Empty):
            self._orders.get(timeout=self._seconds)
            return
        os.kill(self._pid, signal.SIGTERM)


class Gates:
    """The gates of one process: one before each server that has set its own handler of SIGTERM.

    Args:
        seconds, begin: as for `SigtermGate`.
        has_master: says whether another process decides when this one drains, so that no gate is needed.

    Attributes:
        passed: whether one of them has let the signal through. Another server that hears of it then need not wait.
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
        return self._passed or any(gate.passed for gate in self._gates)

    @property
    def opened(self) -> bool:
        """Return whether a server is to stop."""
        return any(gate.opened for gate in self._gates)

    @property
    def reloads(self) -> bool:
        """Whether a server is started again when a file is saved."""
        return any(gate.reloads for gate in self._gates)

    def add(self) -> SigtermGate | None:
        """Install a gate before the handler of now, unless that is one of ours, or a gate would be in vain."""
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
        """Log one warning, with the server's name and the remedy, where nothing drains this process at SIGTERM."""
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

    Libraries look the server up as the owner of the handler of SIGTERM: sse-starlette, for example, ends its streams
    when that object's ``should_exit`` is true.
    """

    def method(_owner: object, number: int, frame: FrameType | None) -> None:
        handle(number, frame)

    return MethodType(method, owner)
