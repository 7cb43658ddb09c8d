"""The timeouts of every lock: seconds, 0 not to wait, None for ever; and a word for "as the lock was made"."""

from __future__ import annotations

import math
from typing import Final


class Default:
    """Stands for a timeout that was not given: None already means for ever."""

    def __repr__(self) -> str:
        return "the lock's own"


DEFAULT: Final = Default()


def check_timeout(timeout: float | None) -> None:
    """Refuse what is no number of seconds.

    Raises:
        ValueError: it is negative, infinite or not a number.
    """
    if timeout is not None and (not timeout >= 0 or math.isinf(timeout)):
        raise ValueError(f"a timeout is 0 or more seconds, or None to wait for ever, not {timeout!r}")
