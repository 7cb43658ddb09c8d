"""Draw the throughput of the last hour as SVG: bars, axes with units, and a text with the same facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sharedvol_sidecar.humanize import size
from sharedvol_sidecar.monitor.throughput import Minute

_WIDTH, _HEIGHT = 480, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 464, 26, 172
_STEPS = (2, 4, 6, 10)  # with a half that needs no fraction
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, with a text of what it shows."""

    title: str
    words: str
    svg: Markup


def files_plot(minutes: Sequence[Minute]) -> Plot:
    """Draw files per minute."""
    values = [minute.files for minute in minutes]
    return _plot("files", "Files per minute", "files per minute", values, 1, [f"{count:,}" for count in _facts(values)])


def bytes_plot(minutes: Sequence[Minute]) -> Plot:
    """Draw bytes per minute, in a unit that fits the largest value."""
    values = [minute.bytes for minute in minutes]
    power = min(len(_UNITS) - 1, int(math.log(max(1, *values), 1024)))
    unit = f"{_UNITS[power]} per minute"
    return _plot("bytes", "Bytes per minute", unit, values, 1024**power, [size(count) for count in _facts(values)])


def _facts(values: Sequence[int]) -> tuple[int, int, int]:
    return sum(values), max(values), values[-1]


def _plot(key: str, title: str, unit: str, values: Sequence[int], scale: int, facts: Sequence[str]) -> Plot:
    total, most, last = facts
    words = (
        f"Over the last {len(values)} minutes: {total} in total, at most {most} in a minute, {last} in the last one."
    )
    top = _ceiling(max(values) / scale)
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{key}-title {key}-words">',
        f'<title id="{key}-title">{title}</title><desc id="{key}-words">{words}</desc>',
        *_horizontal(top, unit),
        *_vertical(len(values)),
        *_bars([value / scale / top for value in values]),
        "</svg>",
    ]
    return Plot(title, words, Markup("\n".join(parts)))  # it has only numbers and our own words


def _ceiling(value: float) -> float:
    """Return the least round number that is not below ``value`` and is at least 2."""
    decade = 1.0
    while value > decade * _STEPS[-1]:
        decade *= 10
    return next(step * decade for step in _STEPS if value <= step * decade)


def _horizontal(top: float, unit: str) -> list[str]:
    parts = [f'<text class="unit" x="4" y="14">{unit}</text>']
    for part in (0, 0.5, 1):
        y = _BOTTOM - part * (_BOTTOM - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{top * part:,.0f}</text>')
    return parts


def _vertical(count: int) -> list[str]:
    parts = []
    for ago in range(0, count + 1, 15):
        x = _RIGHT - ago * (_RIGHT - _LEFT) / count
        parts.append(f'<line class="axis" x1="{x:g}" x2="{x:g}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{_BOTTOM + 18}" text-anchor="middle">{ago or "now"}</text>')
    middle = (_LEFT + _RIGHT) / 2
    return [*parts, f'<text class="unit" x="{middle:g}" y="{_HEIGHT - 5}" text-anchor="middle">minutes ago</text>']


def _bars(parts: Sequence[float]) -> list[str]:
    step = (_RIGHT - _LEFT) / len(parts)
    width = f'width="{step - 1:.2f}"'
    drawn = []
    for number, part in enumerate(parts):
        if part > 0:
            height = max(1.5, part * (_BOTTOM - _TOP))  # a single file in a busy hour stays visible
            x, y = _LEFT + number * step + 0.5, _BOTTOM - height
            drawn.append(f'<rect class="bar" x="{x:.2f}" y="{y:.2f}" {width} height="{height:.2f}"/>')
    return drawn
