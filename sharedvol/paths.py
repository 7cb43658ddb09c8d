"""Paths that are unique across containers, workers, threads and restarts, and the parser of their names.

There are three forms. R services write the first two:

=========  ======================================  ==============================================
form       built by                                example
=========  ======================================  ==============================================
container  ``container_path("results", "a.json")``  ``results/a_3f9c0d1e2b4a.json``
log        ``log_path("logs")``                     ``logs/3f9c0d1e2b4a_20260131.log``
unique     ``unique_path("results", "a.json")``     ``results/a_3f9c0d1e2b4a_u5k2m9x0q7t1vz-1.json``
=========  ======================================  ==============================================

A name's suffix is its last extension. If that is a compression, the suffix includes the extension before it
(``.json.gz``). An extension is a dot, a letter, and up to nine more letters or digits.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Literal

from sharedvol import forks
from sharedvol.errors import IdentityError, InvalidNameError
from sharedvol.identity import container_id, worker_token

MAX_NAME_BYTES = 255
"""NAME_MAX of every Linux file system, see pathconf(3)."""

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}", re.ASCII)
_COMPRESSIONS = frozenset({".gz", ".zst", ".xz", ".bz2", ".lz4", ".br", ".Z"})
_LOG = re.compile(r"(?P<container>.+)_(?P<date>[0-9]{8})\.log", re.ASCII | re.DOTALL)
_TAIL = re.compile(r"(?P<head>.+)_u(?P<worker>[0-9a-z]{13})-(?P<count>[0-9]+)", re.ASCII | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What a file name says about the process that made it.

    Attributes:
        form: which builder made it: ``container``, ``log`` or ``unique``.
        name: the name that was passed to the builder; for a log, the file name.
        container: the container's name.
        date: a log's day, else None.
        worker: the worker token of a unique name, else None.
        count: the counter of a unique name, else None.
    """

    form: Literal["container", "log", "unique"]
    name: str
    container: str
    date: Date | None = None
    worker: str | None = None
    count: int | None = None


class _Counter:
    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        forks.notice()
        with self._lock:
            self._last += 1
            return self._last


_counter = _Counter()
forks.in_child(_counter.renew)


def unique_path(directory: PathLike, name: str) -> Path:
    """Return a path in ``directory`` that no other process makes. The disk is not touched.

    The path is unique across containers, workers, forks, restarts and threads: the container's name, a random token of
    the process and a counter come before the suffix.

    Args:
        directory: where the file will be; it need not exist.
        name: one file name, such as ``job_42.json``.

    Raises:
        InvalidNameError: ``name`` is not a file name, or is too long with the parts that are added.
        IdentityError: see `sharedvol.container_id`.
    """
    tail = f"_{container_id()}_u{worker_token()}-{_counter.next()}"
    return Path(directory, _with_tail(name, tail))


def container_path(directory: PathLike, name: str, *, container: str | None = None) -> Path:
    """Return ``name`` with the container's name before its suffix, as R does: ``results/job_7_<container>.json``.

    The path is unique between containers. Two workers of one container get the same path.

    Args:
        directory: where the file will be; it need not exist.
        name: one file name, such as ``job_7.json``.
        container: the name of another container; by default this one's.

    Raises:
        InvalidNameError: ``name`` is not a file name, or is too long with the parts that are added.
        IdentityError: see `sharedvol.container_id`.
    """
    return Path(directory, _with_tail(name, f"_{_known(container)}"))


def log_path(directory: PathLike, *, container: str | None = None, date: Date | None = None) -> Path:
    """Return the path of a container's log of the day, as R does: ``logs/<container>_<YYYYMMDD>.log``.

    Args:
        directory: where the file will be; it need not exist.
        container: the name of another container; by default this one's.
        date: another day; by default today in local time, as R's ``Sys.time()``.

    Raises:
        IdentityError: see `sharedvol.container_id`.
    """
    day = date or Date.today()
    return Path(directory, f"{_known(container)}_{day.year:04}{day:%m%d}.log")


def parse_name(path: PathLike, *, containers: Iterable[str] | None = None) -> ParsedName:
    """Parse a name that `unique_path`, `container_path` or `log_path` made, from the last component of ``path``.

    A container's name may contain ``_`` and ``.``. Then its beginning can only be found if the name is known. So known
    names are tried first, the longest before the others. Any other name is split at its last ``_``, which is right for
    every container name without ``_``, such as a container id. Note that ``my_report.json`` has the container form as
    well; pass ``containers`` if that matters.

    Args:
        path: a path or a file name.
        containers: the names to accept, and no others. By default this container's name is tried, then any.

    Raises:
        InvalidNameError: the name has none of the three forms.
    """
    name = os.path.basename(os.fspath(path))
    if containers is not None:
        known, any_other = sorted(containers, key=len, reverse=True), False
    else:
        known, any_other = _own(), True
    for container in known:
        parsed = _parse(name, container)
        if parsed:
            return parsed
    parsed = _parse(name, None) if any_other else None
    if parsed is None:
        raise InvalidNameError(
            f"file name {name!r} has none of the forms <stem>_<container><suffix>, "
            "<container>_<YYYYMMDD>.log, <stem>_<container>_u<worker>-<count><suffix>"
            + ("" if any_other else f" for the containers {known}")
        )
    return parsed


def split_suffix(name: str) -> tuple[str, str]:
    """Split ``job.json.gz`` into ``("job", ".json.gz")``. ``v1.2`` and ``.bashrc`` have no suffix."""
    stem, suffix = _split_extension(name)
    if suffix in _COMPRESSIONS:
        inner_stem, inner = _split_extension(stem)
        return inner_stem, inner + suffix
    return stem, suffix


def _split_extension(name: str) -> tuple[str, str]:
    dot = name.rfind(".")
    if dot > 0 and _EXTENSION.fullmatch(name, dot):
        return name[:dot], name[dot:]
    return name, ""


def _known(container: str | None) -> str:
    if container is None:
        return container_id()
    if not container or "/" in container or container in (".", "..") or _CONTROL.search(container):
        raise InvalidNameError(f"container name {container!r} cannot be part of a file name")
    return container


def _own() -> list[str]:
    try:
        return [container_id()]
    except IdentityError:
        return []


def _with_tail(name: str, tail: str) -> str:
    if not name or name in (".", "..") or "/" in name:
        raise InvalidNameError(f"{name!r} is not a file name: give one name without a directory")
    if _CONTROL.search(name):
        raise InvalidNameError(f"file name {name!r} holds control characters: leave them out")
    stem, suffix = split_suffix(name)
    built = f"{stem}{tail}{suffix}"
    try:
        length = len(os.fsencode(built))
    except UnicodeEncodeError as error:
        raise InvalidNameError(f"file name {name!r} cannot be encoded: {error}") from None
    if length > MAX_NAME_BYTES:
        raise InvalidNameError(
            f"file name {name!r} would have {length} bytes with {tail!r} added, and {MAX_NAME_BYTES} "
            f"is the limit: shorten it by {length - MAX_NAME_BYTES}"
        )
    return built


def _parse(name: str, container: str | None) -> ParsedName | None:
    """Parse ``name`` as one of the three forms, for ``container`` if that is given."""
    log = _LOG.fullmatch(name)
    if log and container in (None, log["container"]):
        day = _day(log["date"])
        if day:
            return ParsedName("log", name, log["container"], date=day)
    for head, suffix in _splits(name, container):
        worker: str | None = None
        count: int | None = None
        tail = _TAIL.fullmatch(head)
        if tail:
            head, worker, count = tail["head"], tail["worker"], int(tail["count"])
        stem, _, found = head.rpartition("_")
        if container is not None:
            stem, found = head.removesuffix(f"_{container}"), container
            if stem == head:
                continue
        # Accept only a split that the builder would have made. Otherwise the suffix would begin at a dot of the
        # container's name.
        if stem and found and split_suffix(stem + suffix) == (stem, suffix):
            form: Literal["unique", "container"] = "unique" if tail else "container"
            return ParsedName(form, stem + suffix, found, None, worker, count)
    return None


def _splits(name: str, container: str | None) -> list[tuple[str, str]]:
    """Return the possible splits: the one of the rule, or one for each dot if the container is known."""
    if container is None:
        return [split_suffix(name)]
    places = [i for i, letter in enumerate(name) if letter == "." and i > 0]
    return [(name[:i], name[i:]) for i in (*places[-2:], len(name))] if places else [(name, "")]


def _day(digits: str) -> Date | None:
    try:
        return Date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
