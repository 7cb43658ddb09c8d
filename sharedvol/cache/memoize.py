"""The decorator that takes a function's results from a cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sharedvol.cache.keys import Key

if TYPE_CHECKING:
    from sharedvol.cache.cache import Cache


def memoize(cache: Cache, key: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what `Cache.memoize` returns: a decorator, or a decorated function."""
    if key is None:
        return functools.partial(_memoized, cache)
    if inspect.iscoroutinefunction(key):  # a function that makes keys is not a coroutine: this is the function itself
        return _memoized(cache, key)

    @functools.wraps(key)
    def either(*args: Any, **options: Any) -> Any:
        # Without parentheses the decorator gets the function itself. A function cannot be part of a key, so a call with
        # one function as its only argument asks to decorate it.
        if len(args) == 1 and not options and inspect.isroutine(args[0]):
            return _memoized(cache, args[0], key)
        return plain(*args, **options)

    plain = _memoized(cache, key)
    return either


def _memoized(cache: Cache, function: Callable[..., Any], key: Callable[..., Key] | None = None) -> Callable[..., Any]:
    make = key if key is not None else functools.partial(_plain_key, function)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **options: Any) -> Any:
            return await cache.get_async(make(*args, **options), lambda: function(*args, **options))

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return cache.get(make(*args, **options), lambda: function(*args, **options))

    return call


def _plain_key(function: Callable[..., object], *args: object, **options: object) -> Key:
    """Return a key made of the function's name and the arguments of a call.

    Raises:
        TypeError: an argument cannot be part of a key.
    """
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
