"""What callers give to `sharedvol.cache.Cache`: checked, and with errors that say what to give."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import TypeVar

from sharedvol.arguments import size_of
from sharedvol.cache.keys import Key

T = TypeVar("T")


def awaitable(computed: Awaitable[T]) -> Awaitable[T]:
    """Return what was computed, which must be awaitable.

    Raises:
        TypeError: it is not.
    """
    if inspect.isawaitable(computed):
        return computed
    raise TypeError(
        f"get_async: the function returned a value of type {type(computed).__name__}, which cannot be awaited: give an "
        "async function, or use get"
    )


def value(computed: T) -> T:
    """Return what was computed, which must not be awaitable.

    Raises:
        TypeError: it is.
    """
    if not inspect.isawaitable(computed):
        return computed
    if inspect.iscoroutine(computed):
        computed.close()  # else Python warns that it was never awaited
    raise TypeError("get: the function is async: await get_async instead")


def check_max_age(max_age: float | None) -> None:
    """Refuse what is not a number of seconds, or None.

    Raises:
        TypeError, ValueError: what is wrong with it.
    """
    if max_age is None:
        return
    if not isinstance(max_age, Real):
        raise TypeError(f"max_age {max_age!r}: give seconds as a number, or None for no limit")
    if not max_age > 0:
        raise ValueError(f"max_age {max_age!r}: give seconds, or None for no limit")


def limit_of(max_bytes: int | str | None) -> int | None:
    """Return the limit in bytes, which may be given in words; None for none.

    Raises:
        TypeError, ValueError: what is wrong with it.
    """
    if max_bytes is None:
        return None
    limit = size_of(max_bytes, "max_bytes")
    if limit <= 0:
        raise ValueError(f"max_bytes {max_bytes!r}: give a number of bytes, or None for no limit")
    return limit


def plain_key(function: Callable[..., object], *args: object, **options: object) -> Key:
    """Return a key for a call, of the function's name and its arguments."""
    given = (args, sorted(options.items()))
    if not _is_plain(args) or not _is_plain(tuple(options.values())):
        raise TypeError(
            f"memoize: the arguments of {function.__qualname__} are not all text, bytes, numbers, booleans, None or "
            "tuples of them; give memoize a function that makes a key of them"
        )
    return (function.__module__, function.__qualname__, repr(given))


def _is_plain(value: object) -> bool:
    if type(value) is tuple:
        return all(_is_plain(one) for one in value)
    return value is None or type(value) in (str, bytes, int, float, bool)
