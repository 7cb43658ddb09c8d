"""Check the arguments of `sharedvol.cache.Cache`, with errors that say what to give."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from numbers import Real
from typing import TypeVar

from sharedvol.arguments import size_of

T = TypeVar("T")


def awaitable(computed: Awaitable[T]) -> Awaitable[T]:
    """Return what was computed, if it is awaitable.

    Raises:
        TypeError: it is not awaitable.
    """
    if inspect.isawaitable(computed):
        return computed
    raise TypeError(
        f"get_async: the function returned a value of type {type(computed).__name__}, which cannot be awaited: give an "
        "async function, or use get"
    )


def value(computed: T) -> T:
    """Return what was computed, unless it is awaitable.

    Raises:
        TypeError: it is awaitable.
    """
    if not inspect.isawaitable(computed):
        return computed
    if inspect.iscoroutine(computed):
        computed.close()  # otherwise Python warns that it was never awaited
    raise TypeError("get: the function is async: await get_async instead")


def check_max_age(max_age: float | None) -> None:
    """Refuse anything but a number of seconds or None.

    Raises:
        TypeError, ValueError: it is not valid.
    """
    if max_age is None:
        return
    if not isinstance(max_age, Real):
        raise TypeError(f"max_age {max_age!r}: give seconds as a number, or None for no limit")
    if not max_age > 0:
        raise ValueError(f"max_age {max_age!r}: give seconds, or None for no limit")


def max_bytes_of(max_bytes: int | str | None) -> int | None:
    """Return the limit in bytes, which may be a text such as ``500M``; None for no limit.

    Raises:
        TypeError, ValueError: it is not valid.
    """
    if max_bytes is None:
        return None
    limit = size_of(max_bytes, "max_bytes")
    if limit <= 0:
        raise ValueError(f"max_bytes {max_bytes!r}: give a number of bytes, or None for no limit")
    return limit
