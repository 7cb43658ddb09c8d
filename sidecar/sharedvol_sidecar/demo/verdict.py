"""Compare what was written with what was collected, by count and digest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharedvol_sidecar.fs.private import PRIVATE


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one writer's files or lines.

    Attributes:
        writer: its title.
        written: files, or lines, that it completed.
        collected: those that are in the destination.
        lost: those of which neither content nor name is in the destination.
        doubled: those that are in the destination more than once.
        overwritten: those whose name is in the destination with other content.
    """

    writer: str
    written: int
    collected: int
    lost: int
    doubled: int
    overwritten: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The accounts of all writers.

    Attributes:
        rows: one account for each writer.
        foreign: files and lines in the destination that no writer completed: half-written ones.
        left: files that are still in the spool.
    """

    rows: list[Account]
    foreign: int
    left: int

    @property
    def good(self) -> bool:
        """Return whether everything that was written is in the destination, once and whole."""
        faults = sum(row.lost + row.doubled + row.overwritten for row in self.rows)
        return not faults and not self.foreign and not self.left and all(row.written for row in self.rows)


@dataclass(slots=True)
class _Collected:
    """What is in the destination: files by digest, lines by their text, and the names of files."""

    files: Counter[str]
    lines: Counter[str]
    names: set[str]


def judge(records: Path, spool: Path, collected: Path) -> Verdict:
    """Compare the records with the destination."""
    destination = _read_collected(collected)
    accounts = []
    known: set[str] = set()
    titles = {path.stem: path.read_text() for path in records.glob("*.title")}
    for short, title in sorted(titles.items(), key=lambda item: item[1]):
        files, lines = _read_records(records, short)
        written, found = (files, destination.files) if files else (lines, destination.lines)
        accounts.append(_account(title, written, found, destination.names))
        known.update(key for key, _ in written)
    foreign = sum(key not in known for key in (*destination.files, *destination.lines))
    left = sum(1 for path in _files(spool, hidden=True) if not _is_ours(path.relative_to(spool)))
    return Verdict(accounts, foreign, left)


def _read_collected(collected: Path) -> _Collected:
    found = _Collected(Counter(), Counter(), set())
    for path in _files(collected):
        if path.suffix == ".json":
            found.files[hashlib.sha256(path.read_bytes()).hexdigest()] += 1
            found.names.add(path.name)
        else:
            found.lines.update(path.read_text(errors="replace").splitlines())
    return found


def _read_records(records: Path, writer: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return a writer's files, as digest and name, and its lines, which have no name."""
    files, lines = (
        [line for path in records.glob(f"{writer}-*.{kind}") for line in path.read_text().splitlines()]
        for kind in ("files", "lines")
    )
    split = (entry.partition(" ") for entry in files)
    return [(digest, name) for digest, _, name in split], [(line, "") for line in lines]


def _account(writer: str, written: list[tuple[str, str]], found: Counter[str], names: set[str]) -> Account:
    missing = [name for key, name in written if not found[key]]
    overwritten = sum(name in names for name in missing)
    return Account(
        writer=writer,
        written=len(written),
        collected=len(written) - len(missing),
        lost=len(missing) - overwritten,
        doubled=sum(found[key] > 1 for key, _ in written),
        overwritten=overwritten,
    )


def _is_ours(path: Path) -> bool:
    """Return whether a file is the sidecar's own. A claim is not: it is a replica's file."""
    return path.parts[0] == PRIVATE and path.parts[1] != "claims"


def table(verdict: Verdict) -> str:
    """Return the accounts as a table with a sum."""
    heads = ("written", "collected", "lost", "doubled", "overwritten")
    lines = [f"{'':36}" + "".join(f"{head:>12}" for head in heads)]
    lines += [f"{row.writer:36}" + "".join(f"{getattr(row, head):>12,}" for head in heads) for row in verdict.rows]
    sums = [sum(getattr(row, head) for row in verdict.rows) for head in heads]
    lines.append(f"{'together':36}" + "".join(f"{number:>12,}" for number in sums))
    return "\n".join(lines)


def _files(root: Path, *, hidden: bool = False) -> Iterator[Path]:
    for directory, directories, names in os.walk(root):
        if not hidden:
            directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(directory, name) for name in names)
