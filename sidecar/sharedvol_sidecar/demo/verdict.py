"""What was written against what was collected, by count and digest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharedvol_sidecar.fs.private import PRIVATE


@dataclass(frozen=True, slots=True)
class Row:
    """One writer's account.

    Attributes:
        writer: its title.
        written: files, or lines, that it completed.
        collected: how many of those are in the destination.
        lost: those that are not, and whose name is not there either.
        doubled: those that are there more than once.
        overwritten: those that are not there, though their name is, with other contents.
    """

    writer: str
    written: int
    collected: int
    lost: int
    doubled: int
    overwritten: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """All accounts.

    Attributes:
        rows: one for each writer.
        foreign: files and lines in the destination that nobody completed: half-written ones.
        left: files that are still in the spool.
    """

    rows: list[Row]
    foreign: int
    left: int

    @property
    def good(self) -> bool:
        """Whether everything that was written is there, once and whole."""
        faults = sum(row.lost + row.doubled + row.overwritten for row in self.rows)
        return not faults and not self.foreign and not self.left and all(row.written for row in self.rows)


def judge(records: Path, spool: Path, collected: Path) -> Verdict:
    """Compare the records with the destination."""
    there: Counter[str] = Counter()
    names: set[str] = set()
    lines: Counter[str] = Counter()
    for path in _files(collected):
        if path.suffix == ".json":
            there[hashlib.sha256(path.read_bytes()).hexdigest()] += 1
            names.add(path.name)
        else:
            lines.update(path.read_text(errors="replace").splitlines())
    titles = {path.stem: path.read_text() for path in records.glob("*.title")}
    rows = []
    known: set[str] = set()
    for short, title in sorted(titles.items(), key=lambda item: item[1]):
        wanted = [line for path in records.glob(f"{short}-*.files") for line in path.read_text().splitlines()]
        written = [(digest, name) for digest, _, name in (entry.partition(" ") for entry in wanted)]
        found = there
        if not written:
            written = [
                (line, "") for path in records.glob(f"{short}-*.lines") for line in path.read_text().splitlines()
            ]
            found = lines
        known.update(key for key, _ in written)
        missing = [name for key, name in written if not found[key]]
        overwritten = sum(name in names for name in missing)
        rows.append(
            Row(
                writer=title,
                written=len(written),
                collected=len(written) - len(missing),
                lost=len(missing) - overwritten,
                doubled=sum(found[key] > 1 for key, _ in written),
                overwritten=overwritten,
            )
        )
    foreign = sum(key not in known for key in (*there, *lines))
    left = sum(1 for path in _files(spool, hidden=True) if not _is_ours(path.relative_to(spool)))
    return Verdict(rows, foreign, left)


def _is_ours(path: Path) -> bool:
    """Return whether the sidecar keeps this file for itself. A claim is a replica's file."""
    return path.parts[0] == PRIVATE and path.parts[1] != "claims"


def table(verdict: Verdict) -> str:
    """The accounts as text, with a sum."""
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
