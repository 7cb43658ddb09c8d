"""What the commands have in common: how they fail, and how names, sizes and times are said and read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import click

EXIT_FAILED = 1
EXIT_CONFIG = 2

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


class Failure(click.ClickException):
    """One line on standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self._code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # a class variable there, for which there is one code
        return self._code

    def show(self, file: Any = None) -> None:
        click.echo(f"sharedvol-sidecar: {one_line(self.message)}", err=True)


def one_line(text: str) -> str:
    """``text`` without what would break the line or drive the terminal: file names are not to be trusted."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def size_words(count: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def time_words(time_ns: int) -> str:
    """A time for people and for JSON, in UTC: ``2026-01-31T14:25:30Z``; empty if no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return ""


def parse_duration(text: str) -> int | None:
    """``90s``, ``15m``, ``2h``, ``7d``, ``4w`` as nanoseconds; None if it is none."""
    found = _DURATION.fullmatch(text)
    return int(float(found[1]) * _SECONDS[found[2]] * 1_000_000_000) if found else None


def parse_size(text: str) -> int | None:
    """``500M``, ``20G``, ``1.5T`` as bytes, in steps of 1,024; None if it is none."""
    found = _SIZE.fullmatch(text)
    return int(float(found[1]) * _BYTES[found[2].upper()]) if found else None


def parse_moment(text: str, now_ns: int) -> int | None:
    """A date, a date with a time (UTC unless it says otherwise), or how long ago; as nanoseconds since 1970."""
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
