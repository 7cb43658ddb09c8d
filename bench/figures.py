"""A figure with its target, a reading beside peers, and how both are shown."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured ratio, or amount, that may have a target.

    Attributes:
        name: what was measured.
        value: the ratio, the share or the amount that is judged.
        target: in words, such as ">= 0.35"; empty without one.
        reached: whether the target is met.
        detail: the absolute figures behind it.
        samples: the same of each run, where there were several: its spread.
    """

    name: str
    value: float
    target: str
    reached: bool
    detail: str
    samples: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One cell of a table of ours beside peers.

    Attributes:
        table: which one; the report knows its words and its unit.
        who: the row: ``sharedvol``, or a peer's name.
        at: the column, such as a number of processes.
        samples: of each run; the median is shown, and the least and the most.
        note: more about it, in words.
    """

    table: str
    who: str
    at: str
    samples: tuple[float, ...]
    note: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)


Measured = Figure | Reading


def at_least(name: str, value: float, limit: float, detail: str, samples: Iterable[float] = ()) -> Figure:
    return Figure(name, value, f">= {limit:g}", value >= limit, detail, tuple(samples))


def at_most(name: str, value: float, limit: float, detail: str, samples: Iterable[float] = ()) -> Figure:
    return Figure(name, value, f"<= {limit:g}", value <= limit, detail, tuple(samples))


def between(name: str, value: float, low: float, high: float, detail: str, samples: Iterable[float] = ()) -> Figure:
    return Figure(name, value, f"{low:g} .. {high:g}", low <= value <= high, detail, tuple(samples))


def note(name: str, value: float, detail: str, samples: Iterable[float] = ()) -> Figure:
    """A figure without a target."""
    return Figure(name, value, "", True, detail, tuple(samples))


def reading(table: str, who: str, at: object, samples: Iterable[float], note: str = "") -> Reading:
    return Reading(table, who, str(at), tuple(samples), note)


def rounds(count: int, scale: float) -> int:
    """How often to measure: once where figures mean nothing."""
    return count if scale >= 0.5 else 1


def show(measured: Measured, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"kind": type(measured).__name__.lower(), **asdict(measured)}), flush=True)
        return
    if isinstance(measured, Reading):
        spread = f"({min(measured.samples):.4g} to {max(measured.samples):.4g})"
        name = f"{measured.table}: {measured.who}, {measured.at}"
        print(f"{name:58} {measured.value:12.4g}  {spread} {measured.note}", flush=True)
        return
    mark = "" if not measured.target else ("reached" if measured.reached else "MISSED")
    print(f"{measured.name:58} {measured.value:8.3f}  {measured.target:12} {mark:8} {measured.detail}", flush=True)


def say(text: str) -> None:
    """Progress, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
