"""Which volumes are tortured, and how thoroughly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from support.sidecar.killing import forbid_links_of_claims
from support.torture.filesystems import Places
from support.torture.isolated import NotHere
from support.torture.scene import SOURCES, Scene
from support.torture.sweeps import Sample

EVERYTHING = os.environ.get("SHAREDVOL_TORTURE") == "all"
"""Whether every point is taken; else a sample, in seconds."""

LIMIT = 7200.0 if EVERYTHING else 110.0
"""Seconds that a sweep may take before it is given up."""

MEMORY = Path("/dev/shm")

timeout = pytest.mark.timeout(LIMIT + 10)
exhaustive = pytest.mark.skipif(not EVERYTHING, reason="takes minutes: SHAREDVOL_TORTURE=all, or make torture")


def sample(step: int, name: str, thorough: int = 1) -> Sample:
    """Every ``step``-th point, or where all are to be taken every ``thorough``-th."""
    return Sample(thorough if EVERYTHING else step, name)


class Directories:
    """Where scenes lie: removed at the end, whatever is mounted there having gone with its sweep."""

    def __init__(self, disk: Path, memory: Path) -> None:
        self.disk, self.memory = disk, memory

    def scene(
        self, layout: str, patch: Callable[[], object] = lambda: None, sources: Mapping[str, bytes] = SOURCES
    ) -> Scene:
        """A scene by name.

        Args:
            layout: ``linked``, ``copied`` to another file system, ``refused`` where files are copied because
                the kernel refuses to link them, or two of `KINDS` as ``spool-destination``.
            patch: a planted bug.
            sources: the files in the spool.

        Raises:
            NotHere: this machine does not allow it.
        """
        if layout == "linked":
            return Scene(self.memory, self.memory, patch, sources=sources)
        if layout == "copied":
            if self.memory.stat().st_dev == self.disk.stat().st_dev:
                raise NotHere("no second file system here")
            return Scene(self.memory, self.disk, patch, sources=sources)
        if layout == "refused":

            def refuse() -> None:
                forbid_links_of_claims()
                patch()

            return Scene(self.memory, self.memory, refuse, sources=sources)
        spool, destination = layout.split("-")
        places = Places(self.disk)
        return Scene(places.on(spool), places.on(destination), patch, sources=sources)


def directories(disk: Path) -> Iterator[Directories]:
    """Below the test's directory, and in memory where the machine shows it."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else disk, prefix="sharedvol-test-") as memory:
        yield Directories(disk, Path(memory))
