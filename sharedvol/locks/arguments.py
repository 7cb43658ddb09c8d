"""Checks of the arguments that all locks take."""

from __future__ import annotations

from typing import Final

from sharedvol.arguments import check_seconds


class Default:
    """The timeout that a lock or a cache was made with.

    Args:
        text: what a signature shows.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


DEFAULT: Final = Default("the lock's own")


def check_timeout(timeout: float | None) -> None:
    """Refuse an invalid timeout.

    Raises:
        TypeError, ValueError: as `sharedvol.arguments.check_seconds`.
    """
    check_seconds(timeout)


def limit_of(timeout: float | Default | None, own: float | None) -> float | None:
    """Return the seconds to wait: ``timeout``, or ``own``, that of the lock, if ``timeout`` is the default.

    Raises:
        ValueError: as `check_timeout`.
    """
    if isinstance(timeout, Default):
        return own
    check_timeout(timeout)
    return timeout


MAX_PURPOSE: Final = 200
"""The longest purpose, in characters."""


def check_purpose(purpose: str) -> None:
    """Refuse a purpose that is too long.

    Raises:
        ValueError: the purpose has more than 200 characters.
    """
    if len(purpose) > MAX_PURPOSE:
        raise ValueError(f"purpose has {len(purpose)} characters: give at most {MAX_PURPOSE}")
