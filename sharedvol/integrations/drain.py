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
    """

    def __init__(self, seconds: float, begin: Callable[[], bool]) -> None:
        self._seconds, self._begin = seconds, begin
        self._pid = os.getpid()
        self._begun = self._passed = False
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
        """Whether the server has been told to stop, also by a SIGTERM that came before we stood here."""
        return self._passed or bool(getattr(self._server, "should_exit", False))

    @property
    def reloads(self) -> bool:
        """Whether the server is started anew when a file is saved: who has just saved one does not want to wait."""
        return bool(getattr(getattr(self._server, "config", None), "should_reload", False))

    @property
    def _server(self) -> object:
        return getattr(self._previous, "__self__", None)  # the previous handler is uvicorn.Server.handle_exit

    def remove(self) -> None:
        """Stand there no more, if nobody has taken the place since."""
        self._orders.put(False)
        if os.getpid() != self._pid or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._handler:
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
        self._passed = True
        if callable(self._previous):
            self._previous(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
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


def _method_of(owner: object, handle: _Handler) -> _Handler:
    """Return ``handle`` as a method of ``owner``.

    Libraries look the server up as the owner of the handler of SIGTERM: sse-starlette, for example, ends its streams
    when that object's ``should_exit`` is true.
    """

    def method(_owner: object, number: int, frame: FrameType | None) -> None:
        handle(number, frame)

    return MethodType(method, owner)
