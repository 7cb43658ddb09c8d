"""The report: Markdown with tables, and plots beside it, from what was measured and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench import plots
from bench.figures import Figure, Reading
from bench.results import Group, Results
from bench.tables import SECTIONS, Column, Section, Table

PAGE = "benchmarks.md"
PLOTS = "benchmarks"
"""The directory of the plots, beside the page."""


def write(results: Results, names: Iterable[str], output: Path) -> Path:
    """Write page and plots; the page.

    Args:
        results: what is known.
        names: of all groups: those that were never measured are named, too.
        output: the directory of the page.
    """
    (output / PLOTS).mkdir(parents=True, exist_ok=True)
    readings = [reading for group in results.values() for reading in group.readings]
    drawn = plots.draw(readings, output / PLOTS)
    page = output / PAGE
    page.write_text(render(results, names, drawn))
    return page


def render(results: Results, names: Iterable[str], drawn: Iterable[str]) -> str:
    """The page as Markdown."""
    readings = [reading for group in results.values() for reading in group.readings]
    pictures = set(drawn)
    parts = [_head(results), _targets(results, names)]
    parts += [text for section in SECTIONS if (text := _section(section, readings, pictures))]
    parts += [_others(results), _machines(results), _runs(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float) -> str:
    """Three digits, as many as such a measurement is worth."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(samples: Sequence[float]) -> str:
    """The least and the most, where they differ."""
    if len(samples) < 2:
        return ""
    low, high = number(min(samples)), number(max(samples))
    return low if low == high else f"{low} to {high}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what would end a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _head(results: Results) -> str:
    dates = sorted({group.date for group in results.values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "never"
    small = [name for name, group in results.items() if group.scale != 1]
    warning = (
        f"\n\n**Not at full size, and without meaning: {', '.join(f'`{name}`' for name in small)}.**" if small else ""
    )
    return (
        f"# Benchmarks\n\nMeasured on {when} (UTC) by\n\n"
        "```sh\nmake bench\n```\n\n"
        "which measures everything and writes this page; `python -m bench GROUP` measures one group anew, and\n"
        "`python -m bench --render` only writes the page, from `benchmarks/results.json`. A figure is the median\n"
        "of its runs (of a ratio: of the ratios of each run), followed by the least and the most. The best of a\n"
        "column is **bold**, whoever has it. All of a table was measured in one run; compare within a table, not\n"
        "between machines." + warning
    )


def _targets(results: Results, names: Iterable[str]) -> str:
    judged = [(name, figure) for name, group in results.items() for figure in group.figures if figure.target]
    missed = sum(not figure.reached for _, figure in judged)
    unmeasured = [f"`{name}`" for name in names if name not in results]
    rows = [
        (
            f"`{name}`",
            figure.name,
            _value(figure),
            figure.target,
            "reached" if figure.reached else "**MISSED**",
            figure.detail,
        )
        for name, figure in judged
    ]
    head = ("group", "figure", "measured", "target", "", "absolute")
    summary = f"{len(judged) - missed} of {len(judged)} reached, {missed} missed."
    absent = f" Not measured: {', '.join(unmeasured)}." if unmeasured else ""
    return f"## Targets\n\n{summary}{absent}\n\n{table(head, rows)}"


def _value(figure: Figure) -> str:
    runs = f"{len(figure.samples)} runs"
    if len(figure.samples) < 2:
        return number(figure.value)
    around = spread(figure.samples)
    return f"{number(figure.value)} ({around}, {runs})" if " to " in around else f"{number(figure.value)} ({runs})"


def _section(section: Section, readings: Sequence[Reading], pictures: set[str]) -> str:
    tables = [text for key, words in section.tables.items() if (text := _table(words, _of(key, readings)))]
    if not tables:
        return ""
    images = [f"![{words}]({PLOTS}/{name}.svg)" for name, words in section.plots.items() if name in pictures]
    return "\n\n".join([f"## {section.title}", section.words, *images, *tables])


def _of(key: str, readings: Sequence[Reading]) -> list[Reading]:
    return [reading for reading in readings if reading.table == key]


def _table(words: Table, readings: Sequence[Reading]) -> str:
    if not readings:
        return ""
    cells = {(reading.who, reading.at): reading for reading in readings}
    columns = {at: column for at, column in words.columns.items() if any(key[1] == at for key in cells)}
    best = {at: _best(column, [one.value for one in readings if one.at == at]) for at, column in columns.items()}
    rows = [
        [who, *(_reading(cells.get((who, at)), best[at], notes=words.notes == "cell") for at in columns)]
        for who in dict.fromkeys(reading.who for reading in readings)
    ]
    runs = " or ".join(str(count) for count in sorted({len(reading.samples) for reading in readings}))
    head = [words.row, *(column.title for column in columns.values())]
    said = [f"- {reading.who}: `{reading.note}`" for reading in readings if reading.note and words.notes == "list"]
    below = "\n\nMost failed starts said:\n\n" + "\n".join(said) if said else ""
    return f"**{words.title}** ({runs} runs)\n\n{table(head, rows)}{below}"


def _best(column: Column, values: Sequence[float]) -> float | None:
    """What is printed bold: nothing where all are the same."""
    if not column.better or number(min(values)) == number(max(values)):
        return None
    return max(values) if column.better == "more" else min(values)


def _reading(reading: Reading | None, best: float | None, *, notes: bool) -> str:
    if reading is None:
        return "-"
    text = number(reading.value)
    if best is not None and text == number(best):
        text = f"**{text}**"
    more = [spread(reading.samples)] if min(reading.samples) != max(reading.samples) else []
    if notes and reading.note:
        more.append(reading.note)
    return f"{text} ({'; '.join(more)})" if more else text


def _others(results: Results) -> str:
    rows = [
        (f"`{name}`", figure.name, _value(figure), figure.detail)
        for name, group in results.items()
        for figure in group.figures
        if not figure.target
    ]
    if not rows:
        return ""
    return "## Without a target\n\n" + table(("group", "figure", "measured", "absolute"), rows)


def _machines(results: Results) -> str:
    """One table for each machine, or for each set of versions, that anything was measured on."""
    machines: list[Mapping[str, str]] = []
    for group in results.values():
        if group.machine not in machines:
            machines.append(group.machine)
    parts = []
    for machine in machines:
        names = [f"`{name}`" for name, group in results.items() if group.machine == machine]
        which = "" if len(machines) == 1 else f"{', '.join(names)}:\n\n"
        parts.append(which + table(("", ""), machine.items()))
    return "\n\n".join(["## Machine", *parts])


def _runs(results: Results) -> str:
    rows = [(f"`{name}`", group.date, number(group.seconds)) for name, group in results.items()]
    total = sum(group.seconds for group in results.values())
    return f"## Groups\n\n{total / 60:.1f} minutes in all.\n\n" + table(("group", "measured on", "seconds"), rows)


def order(results: Results, names: Iterable[str]) -> dict[str, Group]:
    """In the order of the groups, whenever each was measured."""
    return {name: results[name] for name in names if name in results}
