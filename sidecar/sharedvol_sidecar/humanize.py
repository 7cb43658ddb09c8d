"""Format names, sizes and times for people, and parse what they write. Names are not trusted."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sharedvol.text import escape_unprintable

LONGEST = 1000
"""Characters that are shown of a name or detail. A path has up to 4,096 bytes, and an error may contain several."""


def plain(text: str, longest: int = LONGEST) -> str:
    r"""Return ``text`` without characters that break a line, control a terminal or change the direction of writing.

    Control characters, bytes that are not UTF-8 (lone surrogates), direction overrides and invisible characters become
    escapes such as ``\n`` or ``\u202e``. HTML is not escaped.
    """
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest // 2) :]}"
    return escape_unprintable(text)


def toml_problem(error: ValueError) -> str:
    """Return the TOML parser's message; only the place if it repeats a part of the file, which may be a secret."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (at byte {error.start})"
    words, at, place = str(error).rpartition("(at ")
    return str(error) if not re.search(r"(['\"]).{3,}\1", words) else f"{at}{place}"


def size(count: float) -> str:
    """Format a number of bytes with its unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Format seconds in at most two units: ``3 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)


def time_words(time_ns: int) -> str:
    """Format a time in UTC: ``2026-01-31T14:25:30Z``; empty if it is outside the calendar."""
    try:
        return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return ""


def parse_duration(text: str) -> int | None:
    """Parse ``90s``, ``15m``, ``2h``, ``7d`` or ``4w`` into nanoseconds; None if it is something else."""
    found = _DURATION.fullmatch(text)
    return int(float(found[1]) * _SECONDS[found[2]] * 1_000_000_000) if found else None


def parse_moment(text: str, now_ns: int) -> int | None:
    """Parse a date, a date with a time (UTC by default), or a duration ago into nanoseconds since 1970."""
    ago = parse_duration(text)
    if ago is not None:
        return now_ns - ago
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
