"""Additional readiness checks. A check that hangs does not delay the answer."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from sharedvol import native
from sharedvol.integrations.process import start_thread

OK: Final = "ok"

_log = logging.getLogger(__name__)


class Checks:
    """Run all checks at once, each in a thread of its own.

    A check that does not end in time has failed, and is not started again until it has ended. So a disk that hangs
    does not accumulate threads.

    Args:
        checks: functions by name. A check fails if it raises, or returns a false value other than None.
        timeout: seconds to wait for all checks together.
        max_age: seconds for which answers are reused.

    Raises:
        TypeError: a check is a coroutine function, which a thread cannot await.
    """

    def __init__(self, checks: Mapping[str, Callable[[], object]], *, timeout: float, max_age: float) -> None:
        for name, check in checks.items():
            if not callable(check) or inspect.iscoroutinefunction(check):
                raise TypeError(f"check {name!r} must be a function that can run in a thread, not {check!r}")
        self._checks = dict(checks)
        self._timeout, self._max_age = timeout, max_age
        self.renew()

    def renew(self) -> None:
        """Forget all running checks. A forked child needs this, because it does not have its parent's threads."""
        self._lock = native.Turnstile()
        self._running: dict[str, _CheckRun] = {}
        self._last: tuple[float, dict[str, str]] | None = None

    def ask(self) -> dict[str, str]:
        """Return the result of each check: ``ok``, or what is wrong."""
        if not self._checks:
            return {}
        with self._lock:
            last = self._last
            if last is not None and time.monotonic() - last[0] <= self._max_age:
                return last[1]
            runs = {name: self._run(name) for name in self._checks}
        end = time.monotonic() + self._timeout
        results = {name: run.result(end - time.monotonic()) for name, run in runs.items()}
        with self._lock:
            self._last = (time.monotonic(), results)
        return results

    def _run(self, name: str) -> _CheckRun:
        run = self._running.get(name)
        if run is None or run.ended:
            run = self._running[name] = _CheckRun(name, self._checks[name])
        return run


class _CheckRun:
    """One run of a check."""

    def __init__(self, name: str, check: Callable[[], object]) -> None:
        self._name, self._check = name, check
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._result = ""
        start_thread(self._run, f"check-{name}")

    @property
    def ended(self) -> bool:
        return self._done.is_set()

    def result(self, timeout: float) -> str:
        if self._done.wait(max(0.0, timeout)):
            return self._result
        return f"no answer for {time.monotonic() - self._begun:.1f} s"

    def _run(self) -> None:
        try:
            self._result = _in_words(self._check())
        except Exception as error:
            _log.warning("readiness check %r failed", self._name, exc_info=True)
            self._result = f"{type(error).__name__}: {error}"
        except BaseException as error:  # SystemExit also fails the check
            self._result = type(error).__name__
        finally:
            self._done.set()


def _in_words(result: object) -> str:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        return "returned an awaitable, which a thread cannot await: use a plain function"
    return OK if result is None or result else f"returned {result!r}"
