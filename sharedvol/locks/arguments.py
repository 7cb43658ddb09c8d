"""What a time to wait may be, and the one that stands for the lock's own."""

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
    """Refuse what is not a time to wait.

    Raises:
        TypeError, ValueError: as `sharedvol.arguments.check_seconds`.
    """
    check_seconds(timeout)


def limit_of(timeout: float | Default | None, own: float | None) -> float | None:
    """The seconds to wait where a caller said ``timeout`` and the lock was made with ``own``.

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
        ValueError: it has more than 200 characters.
    """
    if len(purpose) > MAX_PURPOSE:
        raise ValueError(f"purpose has {len(purpose)} characters: give at most {MAX_PURPOSE}")
