"""What a time to wait may be, and the one that stands for the lock's own."""

from __future__ import annotations

import math
from typing import Final


class Default:
    """The timeout that the lock was made with."""

    def __repr__(self) -> str:
        return "the lock's own"


DEFAULT: Final = Default()


def check_timeout(timeout: float | None) -> None:
    """Refuse what is no time to wait.

    Raises:
        ValueError: ``timeout`` is negative, infinite or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout {timeout!r}: give seconds, 0 not to wait, or None to wait for ever")
    if timeout is not None and math.isinf(timeout):
        raise ValueError("timeout inf: give None to wait for ever")


def limit_of(timeout: float | Default | None, own: float | None) -> float | None:
    """The seconds to wait where a caller said ``timeout`` and the lock was made with ``own``.

    Raises:
        ValueError: as `check_timeout`.
    """
    if isinstance(timeout, Default):
        return own
    check_timeout(timeout)
    return timeout
