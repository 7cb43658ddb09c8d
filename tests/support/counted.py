"""Points that tests counted, summed up at the end of a run: a test records them as properties of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

POINTS = "points: "
"""What the names of such properties begin with, before the kind of point."""


def summary(reports: Iterable[Any]) -> str:
    """One line with the sum of each kind, or "" where nothing was counted."""
    sums: Counter[str] = Counter()
    for report in reports:
        for name, value in report.user_properties:
            if name.startswith(POINTS):
                sums[name.removeprefix(POINTS)] += value
    return "torture: " + ", ".join(f"{sums[kind]:,} {kind}" for kind in sorted(sums)) if sums else ""
