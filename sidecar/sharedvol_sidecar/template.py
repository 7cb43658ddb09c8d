"""Where a collected file goes: a template of the file's own properties, and so the same after a restart."""

from __future__ import annotations

import hashlib
import os
import string
from datetime import UTC, datetime
from datetime import date as Date
from enum import Enum

from sharedvol.paths import MAX_NAME_BYTES, split_suffix
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.layout import Origin

_SURELY_SHORT = MAX_NAME_BYTES // 4  # characters that fit in any encoding

_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999, as seconds since 1970

DEFAULT = "{kind}/{date}/{container}/{name}"

FIELDS = {
    "kind": "the source's kind: results or logs",
    "date": "the day it was written, YYYY-MM-DD in UTC; for an R log, the day in its name",
    "year": "of that day, YYYY",
    "month": "of that day, MM",
    "day": "of that day, DD",
    "container": "the container's name",
    "name": "the file's path below its kind's directory",
    "base": "the file's name alone",
}
_FRAMES = 256
_EPOCH = Date(1970, 1, 1).toordinal()
_KNOWN = ", ".join(f"{{{name}}}" for name in FIELDS)


class _Slot(Enum):
    """What differs from file to file."""

    NAME = "name"
    BASE = "base"

    def of(self, below: str) -> str:
        return below if self is _Slot.NAME else below.rpartition("/")[2]


class Template:
    """A checked template.

    Raises:
        ConfigError: an unknown field, or a path that leaves the destination.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._frames: dict[tuple[str, str, int], list[str | _Slot]] = {}
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"template {text!r}: {error}; write {{{{ and }}}} for plain braces") from None
        named = set()
        for _, field, form, conversion in parts:
            if field is None:
                continue
            if field not in FIELDS or form or conversion:
                raise ConfigError(
                    f"template {text!r}: unknown field {{{field or ''}{'!' + conversion if conversion else ''}"
                    f"{':' + form if form else ''}}}; the fields are {_KNOWN}"
                )
            named.add(field)
        if not named & {"name", "base"}:
            raise ConfigError(f"template {text!r}: without {{name}} or {{base}} all files would get one name")
        shape = "".join(literal + ("x" if field is not None else "") for literal, field, _, _ in parts)
        if any(not part or part.startswith(".") or "\0" in part for part in shape.split("/")):
            raise ConfigError(
                f"template {text!r}: give a relative path of plain names, without empty, hidden or '..' parts"
            )

    def __str__(self) -> str:
        return self._text

    def target(self, origin: Origin, day: int) -> str:
        """The destination of a file of that day (see `day_of`), relative to the destination's root."""
        # All but the names are the same for most files of a batch.
        key = origin.kind, origin.container, day
        frame = self._frames.get(key)
        if frame is None:
            if len(self._frames) >= _FRAMES:
                self._frames.clear()
            frame = self._frames[key] = self._frame(*key)
        below = origin.below
        path = "".join([part if isinstance(part, str) else part.of(below) for part in frame])
        if len(path) <= _SURELY_SHORT:
            return path
        return "/".join(fit(part) for part in path.split("/"))

    def _frame(self, kind: str, container: str, day: int) -> list[str | _Slot]:
        date = Date.fromordinal(day).isoformat()
        values: dict[str, str | _Slot] = {
            "kind": kind,
            "container": container,
            "date": date,
            "year": date[:4],
            "month": date[5:7],
            "day": date[8:],
            "name": _Slot.NAME,
            "base": _Slot.BASE,
        }
        frame: list[str | _Slot] = []
        for literal, field, _, _ in string.Formatter().parse(self._text):
            frame.append(literal)
            if field is not None:
                frame.append(values[field])
        return frame


def day_of(origin: Origin, mtime_ns: int) -> int:
    """The day of a file that was written then, as `datetime.date.toordinal` counts."""
    return origin.day.toordinal() if origin.day else _EPOCH + _seconds(mtime_ns) // 86_400


def _seconds(mtime_ns: int) -> int:
    # Anybody can give a file a time that no calendar holds, and one such file must not stop all others.
    return min(max(mtime_ns // 1_000_000_000, _FIRST), _LAST)


def fit(name: str, tail: str = "") -> str:
    """``name`` with ``tail`` before its suffix, in 255 bytes: what is too long gets a hash for its end."""
    stem, suffix = split_suffix(name)
    whole = f"{stem}{tail}{suffix}"
    if len(os.fsencode(whole)) <= MAX_NAME_BYTES:
        return whole
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    room = MAX_NAME_BYTES - len(os.fsencode(f"~{digest}{tail}{suffix}"))
    # A cut in the middle of a UTF-8 character leaves bytes, which a Linux name may hold.
    return os.fsdecode(os.fsencode(stem)[:room]) + f"~{digest}{tail}{suffix}"


def alternatives(name: str, mtime_ns: int, inode: int) -> tuple[str, str]:
    """Names for a file whose own is taken by another: when it was written, then its inode as well.

    A function of the source alone: after a restart the file is found under the name it got.
    """
    moment = datetime.fromtimestamp(_seconds(mtime_ns), UTC)
    stamp = f"~{moment:%Y%m%dT%H%M%S}-{mtime_ns % 1_000_000_000:09d}"
    return fit(name, stamp), fit(name, f"{stamp}-{inode}")
