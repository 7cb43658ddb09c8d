"""What was measured, kept as one JSON file, so that a part can be measured anew and the report written again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figure, Measured, Reading

_FORMAT = 1


@dataclass(frozen=True)
class Group:
    """The last run of one group.

    Attributes:
        date: the day, UTC.
        seconds: how long it took.
        scale: 1 where the figures count.
        machine: as `bench.machine.describe` has it.
        figures: with targets and without.
        readings: beside peers.
    """

    date: str
    seconds: float
    scale: float
    machine: dict[str, str]
    figures: tuple[Figure, ...]
    readings: tuple[Reading, ...]

    @classmethod
    def of(
        cls, measured: Sequence[Measured], *, date: str, seconds: float, scale: float, machine: dict[str, str]
    ) -> Group:
        figures = tuple(one for one in measured if isinstance(one, Figure))
        readings = tuple(one for one in measured if isinstance(one, Reading))
        return cls(date, seconds, scale, machine, figures, readings)


Results = dict[str, Group]


def load(path: Path) -> Results:
    """The groups in a file; none where it is missing.

    Raises:
        ValueError: it is of another format.
    """
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    if data.get("format") != _FORMAT:
        raise ValueError(f"{path} has another format: remove it, and measure anew")
    return {name: _group(group) for name, group in data["groups"].items()}


def save(path: Path, results: Results) -> None:
    """Replace the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": _FORMAT, "groups": {name: asdict(group) for name, group in results.items()}}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_short(data), indent=1) + "\n")
    os.replace(partial, path)


def _group(data: dict[str, Any]) -> Group:
    figures = tuple(Figure(**{**one, "samples": tuple(one["samples"])}) for one in data["figures"])
    readings = tuple(Reading(**{**one, "samples": tuple(one["samples"])}) for one in data["readings"])
    return Group(**{**data, "figures": figures, "readings": readings})


def _short(data: Any) -> Any:
    """Five digits say enough."""
    if isinstance(data, dict):
        return {key: _short(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_short(value) for value in data]
    return float(f"{data:.5g}") if isinstance(data, float) else data
