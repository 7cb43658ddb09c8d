"""Check the times and sizes that callers pass."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Final

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def check_seconds(value: float | None, name: str = "timeout") -> None:
    """Check that a value is a time to wait: a number of seconds that is not negative, or None.

    Args:
        value: the value that was passed.
        name: the parameter's name, for the message.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or not a number.
    """
    if value is None:
        return
    if not isinstance(value, Real):
        raise TypeError(f"{name} {value!r}: give seconds as a number, such as 5 or 0.5, or None to wait indefinitely")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} {value!r}: give seconds, 0 not to wait, or None to wait indefinitely")


def parse_size(text: str) -> int | None:
    """Return the bytes of a size such as ``500M``, ``20G`` or ``1.5T`` (K is 1,024); None if it is not a size."""
    found = _SIZE.fullmatch(text)
    return int(float(found[1]) * _UNITS[found[2].upper()]) if found else None


def size_of(value: object, name: str) -> int:
    """Return a number of bytes that was passed as a number or as text: ``10_000_000`` or ``"10M"``.

    Raises:
        TypeError: it is neither a number nor text.
        ValueError: the text is not a size, or the number is not one.
    """
    how = 'give a number of bytes, or text such as "10M" or "1.5G"'
    if isinstance(value, str):
        found = parse_size(value)
        if found is None:
            raise ValueError(f"{name} {value!r}: {how}")
        return found
    if not isinstance(value, int | float):
        raise TypeError(f"{name} {value!r}: {how}")
    if not math.isfinite(value):
        raise ValueError(f"{name} {value!r}: {how}")
    return int(value)
