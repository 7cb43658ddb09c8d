"""Build the path of a collected file from a template. It depends only on the file, so a restart builds the same."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from datetime import date as Date
from enum import Enum

from sharedvol.paths import MAX_NAME_BYTES, split_suffix
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.spool.layout import Origin

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
_SPARE = re.compile(r".+~([2-9]|[1-9][0-9]{1,8})?", re.DOTALL)
_EPOCH = Date(1970, 1, 1).toordinal()
_KNOWN = ", ".join(f"{{{name}}}" for name in FIELDS)


class _Slot(Enum):
    """A field that differs from file to file."""

    NAME = "name"
    BASE = "base"

    def of(self, below: str) -> str:
        return below if self is _Slot.NAME else below.rpartition("/")[2]


class _Frame:
    """A template whose fields are filled in, except those that differ from file to file."""

    __slots__ = ("_after", "_before", "_parts", "_simple")

    def __init__(self, parts: list[str | _Slot]) -> None:
        self._parts = parts
        slots = [index for index, part in enumerate(parts) if isinstance(part, _Slot)]
        self._simple = len(slots) == 1 and parts[slots[0]] is _Slot.NAME  # nearly every template is
        self._before, self._after = "", ""
        if self._simple:
            self._before = "".join(part for part in parts[: slots[0]] if isinstance(part, str))
            self._after = "".join(part for part in parts[slots[0] + 1 :] if isinstance(part, str))

    def path(self, below: str) -> str:
        if self._simple:
            return self._before + below + self._after
        return "".join([part if isinstance(part, str) else part.of(below) for part in self._parts])


class Template:
    """A checked template.

    Raises:
        ConfigError: an unknown field, or a path that leaves the destination.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._frames: dict[tuple[str, str, int], _Frame] = {}
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
        """Return the path of a file of that day (see `day_of`), relative to the destination's root."""
        # Most files of a batch differ only in their names.
        key = origin.kind, origin.container, day
        frame = self._frames.get(key)
        if frame is None:
            if len(self._frames) >= _FRAMES:
                self._frames.clear()
            frame = self._frames[key] = self._frame(*key)
        below = origin.below
        path = frame.path(below)
        if len(path) <= _SURELY_SHORT:
            return path
        return "/".join(fit(part) for part in path.split("/"))

    def _frame(self, kind: str, container: str, day: int) -> _Frame:
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
        return _Frame(frame)


def day_of(origin: Origin, mtime_ns: int) -> int:
    """Return the day of a file as `datetime.date.toordinal` counts: the day in its name, or of its time."""
    return origin.day.toordinal() if origin.day else _EPOCH + _seconds(mtime_ns) // 86_400


def _seconds(mtime_ns: int) -> int:
    # A file can have a time that no calendar has, and one such file must not stop all others.
    return min(max(mtime_ns // 1_000_000_000, _FIRST), _LAST)


def fit(name: str, tail: str = "") -> str:
    """Return ``name`` with ``tail`` before its suffix, in 255 bytes. If it is too long, a hash replaces its end."""
    stem, suffix = split_suffix(name)
    whole = f"{stem}{tail}{suffix}"
    if len(os.fsencode(whole)) <= MAX_NAME_BYTES:
        return whole
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    room = MAX_NAME_BYTES - len(os.fsencode(f"~{digest}{tail}{suffix}"))
    # A cut in the middle of a UTF-8 character leaves bytes, which a Linux name may hold.
    return os.fsdecode(os.fsencode(stem)[:room]) + f"~{digest}{tail}{suffix}"


def alternatives(name: str, mtime_ns: int, inode: int) -> tuple[str, str]:
    """Return names for a file whose own name is taken: one with its time, and one with its inode as well.

    They depend only on the source, so after a restart the file is found under the name that it got.
    """
    moment = datetime.fromtimestamp(_seconds(mtime_ns), UTC)
    stamp = f"~{moment:%Y%m%dT%H%M%S}-{mtime_ns % 1_000_000_000:09d}"
    return fit(name, stamp), fit(name, f"{stamp}-{inode}")


def spare_names(directory: str) -> Iterator[str]:
    """Yield a directory's name, then the names for it if a file has that one: ``a~``, ``a~2`` and so on."""
    yield directory
    for number in itertools.count(1):
        yield _spare(directory, number)


def is_spare(name: str, directory: str) -> bool:
    """Return whether `spare_names` yields ``name`` for a directory."""
    found = _SPARE.fullmatch(name)
    return name == directory or (found is not None and name == _spare(directory, int(found[1] or "1")))


def own_name(directory: str) -> str:
    """Return the name for which `spare_names` yields this one, unless it was too long."""
    return directory.rpartition("~")[0] if _SPARE.fullmatch(directory) else directory


def _spare(directory: str, number: int) -> str:
    tail = "~" if number == 1 else f"~{number}"
    raw = os.fsencode(directory)
    if len(raw) + len(tail) <= MAX_NAME_BYTES:
        return directory + tail
    digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return os.fsdecode(raw[: MAX_NAME_BYTES - len(digest) - len(tail) - 1]) + f"~{digest}{tail}"
