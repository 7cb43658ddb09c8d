"""Force an order of two sidecars' steps: what happens just before, or just after, one of them takes a step."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.spool.layout import LIVE
from support.sidecar.volume import Volume

Act = Callable[[], Any]
Sidecar = Callable[..., Collector]
"""Makes a sidecar with these settings."""


def end(collector: Collector, passes: int = 5) -> None:
    """So many passes."""
    for _ in range(passes):
        collector.run_pass()


def before(monkeypatch: pytest.MonkeyPatch, owner: object, step: str, act: Act, **wanted: object) -> None:
    """Run ``act`` once, just before ``owner`` takes a step for the first time with these first arguments."""
    _around(monkeypatch, owner, step, wanted.get("argument"), lambda real: (act(), real())[1])


def after(monkeypatch: pytest.MonkeyPatch, owner: object, step: str, act: Act, **wanted: object) -> None:
    """The same just after the step."""
    _around(monkeypatch, owner, step, wanted.get("argument"), lambda real: (real(), act())[0])


def _around(
    monkeypatch: pytest.MonkeyPatch, owner: object, step: str, wanted: object, do: Callable[[Act], Any]
) -> None:
    real = getattr(owner, step)
    left = [True]

    def taken(*arguments: Any, **options: Any) -> Any:
        if left and (wanted is None or arguments[0] == wanted):
            left.clear()
            return do(lambda: real(*arguments, **options))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, step, taken)


class Writer:
    """A log whose writer keeps it open, and what was written to it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.fd = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.name, self.number = path.name, 0

    def write(self, lines: int = 1) -> None:
        for _ in range(lines):
            self.number += 1
            os.write(self.fd, f"{self.name} {self.number}\n".encode())

    def move(self, to: Path) -> None:
        """Rename the log, as a rotation does."""
        to.parent.mkdir(parents=True, exist_ok=True)
        self.path = self.path.rename(to)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def lines(volume: Volume) -> Counter[str]:
    """Every line of the collected files and of the live copies, and how often it is there."""
    found: Counter[str] = Counter()
    for path in volume.names():
        data = (volume.collected / path).read_bytes()
        if path.endswith(".gz"):
            data = gzip.decompress(data)
        elif path.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        found.update(data.decode().splitlines())
    return found


def assert_each_line_once(volume: Volume, log: Writer) -> None:
    """All is collected: each line once, no live copy, no record, no claim, and the catalog knows every file."""
    assert lines(volume) == Counter(f"{log.name} {number + 1}" for number in range(log.number))
    assert_nothing_left(volume)


def assert_nothing_left(volume: Volume) -> None:
    """No live copy, no record, no claim, nothing that is staged, and the catalog knows every file."""
    assert [name for name in volume.names() if name.endswith(LIVE)] == []
    assert (records(volume), volume.claims(), volume.staged()) == ([], [], [])
    catalog = Catalog.open("", open_root(volume.collected))
    try:
        assert sorted(row.path for row in catalog.rows()) == sorted(volume.names())
    finally:
        catalog.close()


def records(volume: Volume) -> list[str]:
    """The records of followed logs."""
    return sorted(path.name for path in (volume.collected / ".sharedvol" / "follow").rglob("*.json"))
