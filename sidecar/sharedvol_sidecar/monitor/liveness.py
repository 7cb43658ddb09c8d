"""The sign of life that long work gives, so that a health check tells work from a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Liveness(Protocol):
    """Receives signs of life."""

    def beat(self) -> None:
        """Record that the work continues. Must be cheap: it is called for each chunk of a file."""


class Unwatched:
    """A `Liveness` for work that no health check observes, such as ``once``."""

    def beat(self) -> None:
        """Do nothing."""


def beating(liveness: Liveness, going_on: Callable[[], bool]) -> Callable[[], bool]:
    """Return ``going_on`` so that each call of it is a sign of life, too."""

    def ask() -> bool:
        liveness.beat()
        return going_on()

    return ask
