"""The plots of the report, as SVG that is the same bytes for the same figures.

Each stands on a white card: it is read the same in a light and in a dark theme. Bars begin at zero; an axis with
a logarithm says so; the thin lines show the least and the most of the runs.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Reading, say

# Told apart by people who do not see all colours, too (Okabe and Ito).
_COLOURS = {
    "sharedvol": "#0072B2",
    "filelock": "#E69F00",
    "portalocker": "#009E73",
    "fasteners": "#CC79A7",
    "tooz": "#56B4E9",
    "blocking flock": "#999999",
    "GET_LOCK": "#999999",
    "Alembic, no lock": "#D55E00",
    "Alembic under sharedvol": "#56B4E9",
    "yoyo": "#009E73",
    "bare": "#999999",
}
_OTHER = "#E69F00"
_STYLE = {
    "svg.hashsalt": "sharedvol",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.titlesize": 10,
}


def draw(readings: Sequence[Reading], directory: Path) -> list[str]:
    """Draw what there are readings for; the names of the plots."""
    there = {reading.table for reading in readings}
    wanted = {name: plot for name, (tables, plot) in _PLOTS.items() if there.intersection(tables)}
    if not wanted:
        return []
    try:
        import matplotlib
    except ImportError:
        say("matplotlib is not installed: no plots")
        return []
    matplotlib.use("svg")
    with matplotlib.rc_context(_STYLE):
        for name, plot in wanted.items():
            (directory / f"{name}.svg").write_text(_svg(plot, readings))
    return list(wanted)


def _svg(plot: Callable[[Sequence[Reading]], Any], readings: Sequence[Reading]) -> str:
    import matplotlib.pyplot as plt

    figure = plot(readings)
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return re.sub(r"[ \t]+$", "", written.getvalue(), flags=re.MULTILINE)


def _figure(width: float, height: float, columns: int = 1, *, shared: bool = False) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(width, height), sharex=shared)


def _colour(who: str) -> str:
    return next((colour for name, colour in _COLOURS.items() if who.startswith(name)), _OTHER)


def _cells(readings: Sequence[Reading], table: str) -> dict[tuple[str, str], Reading]:
    return {(reading.who, reading.at): reading for reading in readings if reading.table == table}


def _rows(cells: Iterable[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(who for who, _ in cells))


def _grouped(
    axes: Any,
    series: dict[str, list[Reading | None]],
    labels: Sequence[str],
    *,
    told: Callable[[Reading], str] | None = None,
) -> None:
    """Bars side by side for each label, one of each series."""
    width = 0.84 / len(series)
    for number, (who, column) in enumerate(series.items()):
        for place, reading in enumerate(column):
            if reading is None:
                continue
            x = place + (number - (len(series) - 1) / 2) * width
            low, high = min(reading.samples), max(reading.samples)
            error = [[reading.value - low], [high - reading.value]]
            axes.bar(
                x,
                reading.value,
                width * 0.92,
                color=_colour(who),
                label=who if place == next(i for i, one in enumerate(column) if one is not None) else None,
                yerr=error if len(reading.samples) > 1 else None,
                error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            )
            if told:
                axes.annotate(
                    told(reading), (x, high), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7
                )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")


def _lock_rate(readings: Sequence[Reading]) -> Any:
    figure, axes = _figure(7.2, 3.2)
    crowds = [count for count in (2, 8, 32) if _cells(readings, f"crowd-{count}")]
    cells = {count: _cells(readings, f"crowd-{count}") for count in crowds}
    series = {who: [cells[count].get((who, "rate")) for count in crowds] for who in _rows(cells[crowds[-1]])}
    _grouped(axes, series, [f"{count} processes" for count in crowds])
    axes.set_ylabel("turns per second, all together")
    axes.set_title("Lock held 1 ms, then 2 ms away (more is better)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _lock_waits(readings: Sequence[Reading]) -> Any:
    crowds = [count for count in (8, 32) if _cells(readings, f"crowd-{count}")]
    figure, all_axes = _figure(7.2, 2.8, len(crowds), shared=True)
    for axes, count in zip([all_axes] if len(crowds) == 1 else all_axes, crowds, strict=True):
        cells = _cells(readings, f"crowd-{count}")
        names = _rows(cells)[::-1]
        for place, who in enumerate(names):
            p50, p99, worst = (cells[who, what].value for what in ("p50", "p99", "worst"))
            axes.plot([p50, worst], [place, place], color=_colour(who), linewidth=2, zorder=1)
            for value, marker, label in ((p50, "o", "median"), (p99, "D", "p99"), (worst, "|", "longest")):
                axes.scatter(
                    value,
                    place,
                    s=60 if marker == "|" else 26,
                    marker=marker,
                    color=_colour(who),
                    zorder=2,
                    label=label if place == 0 else None,
                )
        axes.set_xscale("log")
        axes.set_xlim(0.02, 5000)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_yticks(range(len(names)), names if count == crowds[0] else [""] * len(names))
        axes.set_xlabel("wait of a turn, ms (log scale)")
        axes.set_title(f"{count} processes (less is better)")
        axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper")
    for handle in legend.legend_handles:
        handle.set_color("#333333")
    return figure


def _lost(readings: Sequence[Reading]) -> Any:
    figure, axes = _figure(7.2, 3.0)
    cells = _cells(readings, "lost")
    columns = {"itself": "among themselves", "fcntl": "beside fcntl(2), as R locks", "flock": "beside flock(2)"}
    series = {who: [cells.get((who, at)) for at in columns] for who in _rows(cells)}
    _grouped(axes, series, list(columns.values()), told=lambda reading: f"{reading.value:.0f}")
    axes.set_ylabel("increments lost, %")
    axes.set_title("Lost increments, 4 + 4 processes (less is better, 0 is right)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _startup(readings: Sequence[Reading]) -> Any:
    figure, (left, right) = _figure(7.2, 3.5, 2)
    counts = [count for count in (1, 4, 16) if _cells(readings, f"startup-{count}")]
    cells = {count: _cells(readings, f"startup-{count}") for count in counts}
    for axes, what in ((left, "seconds"), (right, "failed")):
        series = {who: [cells[count].get((who, what)) for count in counts] for who in _rows(cells[counts[-1]])}
        told = (lambda reading: f"{reading.value:.0f}") if what == "failed" else None
        _grouped(axes, series, [str(count) for count in counts], told=told)
        axes.set_xlabel("replicas that start at once")
    left.set_ylabel("seconds until all are ready")
    right.set_ylabel("failed starts, all replicas together")
    left.set_title("Time (less is better)")
    right.set_title("Failures (less is better, 0 is right)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _hits(readings: Sequence[Reading]) -> Any:
    figure, axes = _figure(6.4, 3.0)
    cells = _cells(readings, "hits")
    sizes = list(dict.fromkeys(at for _, at in cells))
    for who in _rows(cells):
        there = [(place, cells[who, at]) for place, at in enumerate(sizes) if (who, at) in cells]
        places = [place for place, _ in there]
        axes.plot(places, [one.value for _, one in there], "o-", color=_colour(who), label=who)
        axes.vlines(
            places,
            [min(one.samples) for _, one in there],
            [max(one.samples) for _, one in there],
            color="#333333",
            lw=0.8,
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel("size of the value")
    axes.set_ylabel("hits per second (log scale)")
    axes.set_title("Cache hits, one process (more is better)")
    axes.legend()
    return figure


def _moving(readings: Sequence[Reading]) -> Any:
    figure, axes = _figure(6.4, 2.2)
    cells = _cells(readings, "moving")
    names = _rows(cells)[::-1]
    for place, who in enumerate(names):
        reading = cells[who, "rate"]
        error = [[reading.value - min(reading.samples)], [max(reading.samples) - reading.value]]
        axes.barh(place, reading.value, 0.7, color=_colour(who), xerr=error, error_kw={"elinewidth": 0.8})
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("files of 1 KiB per second")
    axes.set_title("Moving on one file system (more is better)")
    axes.grid(visible=False, axis="y")
    return figure


def _logs(readings: Sequence[Reading]) -> Any:
    figure, (left, right) = _figure(7.2, 2.0, 2)
    cells = _cells(readings, "logs-together")
    names = _rows(cells)[::-1]
    for axes, what in ((left, "rate"), (right, "lost")):
        for place, who in enumerate(names):
            reading = cells[who, what]
            error = [[reading.value - min(reading.samples)], [max(reading.samples) - reading.value]]
            axes.barh(place, reading.value, 0.7, color=_colour(who), xerr=error, error_kw={"elinewidth": 0.8})
            if what == "lost":
                axes.annotate(
                    f"{reading.value:.0f}",
                    (max(reading.samples), place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
    left.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}")
    left.set_xlabel("thousand records per second")
    right.set_xlabel("records lost, %")
    left.set_title("4 processes (more is better)")
    right.set_title("Lost (less is better, 0 is right)")
    return figure


_PLOTS: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Reading]], Any]]] = {
    "lost": (("lost",), _lost),
    "lock-rate": (("crowd-2", "crowd-8", "crowd-32"), _lock_rate),
    "lock-waits": (("crowd-8", "crowd-32"), _lock_waits),
    "startup": (("startup-1", "startup-4", "startup-16"), _startup),
    "cache-hits": (("hits",), _hits),
    "logs": (("logs-together",), _logs),
    "moving": (("moving",), _moving),
}
