"""A figure, its target, and the table of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured ratio.

    Attributes:
        name: what was measured.
        value: the ratio, or the share.
        target: in words, such as ">= 0.35".
        reached: whether the target is met.
        detail: the absolute figures behind it.
    """

    name: str
    value: float
    target: str
    reached: bool
    detail: str


def at_least(name: str, value: float, limit: float, detail: str) -> Figure:
    return Figure(name, value, f">= {limit:g}", value >= limit, detail)


def at_most(name: str, value: float, limit: float, detail: str) -> Figure:
    return Figure(name, value, f"<= {limit:g}", value <= limit, detail)


def between(name: str, value: float, low: float, high: float, detail: str) -> Figure:
    return Figure(name, value, f"{low:g} .. {high:g}", low <= value <= high, detail)


def note(name: str, value: float, detail: str) -> Figure:
    """A figure without a target."""
    return Figure(name, value, "", True, detail)


def show(figure: Figure, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(figure)), flush=True)
        return
    mark = "" if not figure.target else ("reached" if figure.reached else "MISSED")
    print(f"{figure.name:58} {figure.value:8.3f}  {figure.target:12} {mark:8} {figure.detail}", flush=True)


def say(text: str) -> None:
    """Progress, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
