"""Further questions that a replica must answer with yes to be ready. None of them can hang the answer."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from sharedvol import native
from sharedvol.integrations.background import start_thread

OK: Final = "ok"

_log = logging.getLogger(__name__)


class Checks:
    """Asks all checks at once, each in a thread of its own.

    A check that does not end is left alone: it counts as a no, and is not asked again until it has ended, so that
    a disk that hangs does not collect threads.

    Args:
        checks: by name. A check says no by raising, or by returning something false that is not None.
        timeout: seconds that they are waited for, all together.
        max_age: seconds for which answers are used again.

    Raises:
        TypeError: a check is a coroutine function, whose answer would never be looked at.
    """

    def __init__(self, checks: Mapping[str, Callable[[], object]], *, timeout: float, max_age: float) -> None:
        for name, check in checks.items():
            if not callable(check) or inspect.iscoroutinefunction(check):
                raise TypeError(f"check {name!r} is to be a function that is called in a thread, not {check!r}")
        self._checks = dict(checks)
        self._timeout, self._max_age = timeout, max_age
        self.renew()

    def renew(self) -> None:
        """Begin anew, as a forked child must: its parent's threads do not run in it."""
        self._lock = native.Turnstile()
        self._running: dict[str, _Question] = {}
        self._told: tuple[float, dict[str, str]] | None = None

    def ask(self) -> dict[str, str]:
        """What each check says: ``ok``, or what is wrong."""
        if not self._checks:
            return {}
        with self._lock:
            told = self._told
            if told is not None and time.monotonic() - told[0] <= self._max_age:
                return told[1]
            questions = {name: self._question(name) for name in self._checks}
        end = time.monotonic() + self._timeout
        answers = {name: question.answer(end - time.monotonic()) for name, question in questions.items()}
        with self._lock:
            self._told = (time.monotonic(), answers)
        return answers

    def _question(self, name: str) -> _Question:
        asked = self._running.get(name)
        if asked is None or asked.answered:
            asked = self._running[name] = _Question(name, self._checks[name])
        return asked


class _Question:
    """One call of a check."""

    def __init__(self, name: str, check: Callable[[], object]) -> None:
        self._name, self._check = name, check
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._said = ""
        start_thread(self._run, f"check-{name}")

    @property
    def answered(self) -> bool:
        return self._done.is_set()

    def answer(self, timeout: float) -> str:
        if self._done.wait(max(0.0, timeout)):
            return self._said
        return f"no answer for {time.monotonic() - self._begun:.1f} s"

    def _run(self) -> None:
        try:
            self._said = _in_words(self._check())
        except Exception as error:
            _log.warning("readiness check %r failed", self._name, exc_info=True)
            self._said = f"{type(error).__name__}: {error}"
        except BaseException as error:  # SystemExit, too, is no yes
            self._said = type(error).__name__
        finally:
            self._done.set()


def _in_words(result: object) -> str:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        return "returned an awaitable, which nobody awaits: give a function"
    return OK if result is None or result else f"returned {result!r}"
