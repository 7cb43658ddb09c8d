"""Compare what was acknowledged with what is in the destination, record by record."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.soak.records import Account, content, line
from support.torture import judge

_NOTICE = re.compile(rb"\d+ records? since \S+ could not be written here and went to standard error|.*could not be")
_COPIED = "cut"
"""Its records are in the copy that its rotation made and in what a sidecar had followed by then."""


@dataclass
class Found:
    """What is in the destination.

    Attributes:
        paths: where each whole record is.
        pieces: parts of records, and where each is.
    """

    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    pieces: list[tuple[bytes, str]] = field(default_factory=list)


@dataclass
class Verdict:
    """What a soak comes to.

    Attributes:
        acknowledged: records, by the kind of their writer.
        collected: files in the destination.
        problems: what must not be, in words; empty where all is well.
    """

    acknowledged: Counter[str] = field(default_factory=Counter)
    collected: int = 0
    problems: list[str] = field(default_factory=list)


def compare(accounts: Iterable[Account], collected: Path) -> Verdict:
    """Every acknowledged record is there once, and nothing that was never written."""
    found, verdict = read(collected), Verdict()
    verdict.collected = sum(1 for _ in _files(collected))
    unfinished: set[str] = set()
    begun: set[str] = set()
    for account in accounts:
        verdict.acknowledged[account.kind] += len(account.done)
        begun.update(account.begun)
        unfinished.update(id for id in account.begun if id not in account.done or account.kind == _COPIED)
        for id in account.begun:
            paths = found.paths.get(id, [])
            if not paths and id in account.done:
                verdict.problems.append(f"lost: {id}")
            if len(paths) > 1 and (account.kind != _COPIED or len(set(paths)) < len(paths)):
                verdict.problems.append(f"doubled: {id}: {paths}")
    verdict.problems += [f"never written: {id}: {paths}" for id, paths in found.paths.items() if id not in begun]
    verdict.problems += _foreign(found, unfinished)
    return verdict


def read(collected: Path) -> Found:
    """Every record in every collected file."""
    found = Found()
    for path in _files(collected):
        shown = str(path.relative_to(collected))
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        if shown.startswith("logs/"):
            _read_log(data, shown, found)
        else:
            _read_result(data, shown, found)
    return found


def check_catalog(collected: Path) -> list[str]:
    """The catalog has one row for each file, with its size and digest, and no other."""
    rows = judge.catalog(collected) or {}
    files = {file.path: (file.digest, file.size) for file in judge.look(collected, collected).final}
    different = sorted(path for path in rows.keys() | files.keys() if rows.get(path) != files.get(path))
    return [f"catalog: {path}: row {rows.get(path)}, file {files.get(path)}" for path in different]


def check_nothing_left(spool: Path, collected: Path, writers_killed: int) -> list[str]:
    """Nothing waits or is on its way, and no directory of a dead replica stays."""
    seen = judge.look(spool, collected)
    problems = [
        f"left {where}: {file.path}"
        for where, files in (
            ("followed", seen.live), ("in the spool", seen.waiting), ("claimed", seen.claims), ("staged", seen.staged)
        )
        for file in files
    ]  # fmt: skip
    records = sorted((collected / judge.PRIVATE / "follow").glob("*/*"))
    problems += [f"left: the record of a followed log {path}" for path in records]
    homes = [
        entry for entry in spool.iterdir() if not entry.name.startswith(".") and entry.name not in ("results", "logs")
    ]
    problems += [f"orphan: {home.name}: {_all_below(home)}" for home in homes]
    hidden = list((spool / "results").glob(".*"))
    if len(hidden) > writers_killed:
        problems.append(f"{len(hidden)} temporary files of {writers_killed} killed writers: {hidden}")
    return problems


def _foreign(found: Found, unfinished: set[str]) -> list[str]:
    """The pieces that are no part of a record that was begun and not acknowledged."""
    by_writer: dict[str, list[str]] = defaultdict(list)
    for id in unfinished:
        by_writer[id.rpartition(".")[0]].append(id)
    problems = []
    for piece, path in found.pieces:
        if _NOTICE.match(piece):
            continue
        candidates = by_writer.values()
        if not any(line(id).startswith(piece) or content(id).startswith(piece) for ids in candidates for id in ids):
            problems.append(f"not a record: {piece[:80]!r} in {path}")
    return problems


def _read_result(data: bytes, path: str, found: Found) -> None:
    try:
        id = str(json.loads(data)["id"])
    except (ValueError, KeyError, TypeError):
        if data:
            found.pieces.append((data, path))
        return
    if data == content(id):
        found.paths[id].append(path)
    else:
        found.pieces.append((data, path))


def _read_log(data: bytes, path: str, found: Found) -> None:
    for text in data.splitlines(keepends=True):
        id = text.partition(b" ")[0].decode("ascii", "replace")
        if text == line(id):
            found.paths[id].append(path)
        else:
            found.pieces.append((text.rstrip(b"\n"), path))


def _files(collected: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(collected):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(directory, name) for name in files)


def _all_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
