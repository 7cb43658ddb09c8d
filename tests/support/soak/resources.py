"""What a process holds over time: descriptors, threads, memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """At one moment. Memory in bytes."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        status = dict(text.split(":", 1) for text in Path(f"/proc/{pid}/status").read_text().splitlines())
        return cls(len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0]) * 1024)

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads, {self.memory >> 20} MiB"


ADDED = Sample(descriptors=8, threads=3, memory=32 << 20)
"""What an idle sidecar may hold more than when it had begun: locks of other sidecars that it watches, the catalog."""

PARTS = 4
"""Parts of a soak, for each of which its report has what the sidecar held."""


def lowest(samples: Sequence[Sample]) -> Sample:
    """The least of each: between two passes, with few logs open."""
    return Sample(
        min(one.descriptors for one in samples), min(one.threads for one in samples), min(one.memory for one in samples)
    )


def by_part(samples: Sequence[Sample]) -> list[Sample]:
    """The least of each part of a soak, in order. A leak shows as a growth from part to part."""
    size = -(-len(samples) // PARTS)
    return [lowest(samples[start : start + size]) for start in range(0, len(samples), size or 1)]


def added(before: Sample, after: Sample) -> list[str]:
    """What has grown by more than is allowed."""
    return [
        f"{name} of a sidecar grow: {before}, then {after}"
        for name in ("descriptors", "threads", "memory")
        if getattr(after, name) > getattr(before, name) + getattr(ADDED, name)
    ]


def descriptors(pid: int) -> list[str]:
    """What each is open on."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(found)
