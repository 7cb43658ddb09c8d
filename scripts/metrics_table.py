"""Write the table of metrics in docs/monitoring.md from what the service declares.

``python scripts/metrics_table.py`` writes it again. A test compares the page with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sharedvol_sidecar.counters import reasons
from sharedvol_sidecar.monitor.snapshot import ALL
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web.metrics import PREFIX, BoardCollector

PAGE = Path(__file__).parents[1] / "docs" / "monitoring.md"
BEGIN = "<!-- metrics: written by scripts/metrics_table.py -->\n\n"
END = "\n<!-- end of metrics -->"


def table() -> str:
    """Return the table of every metric: its name, its labels and what it means."""
    return "\n".join(["| name | labels | what |", "|---|---|---|", *_rows(), ""])


def _rows() -> Iterator[str]:
    state = ServiceState()
    state.backlog({"a-container": (1, 1)})
    for family in BoardCollector(state.picture).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        text = family.documentation
        values = reasons(ALL, family.name.removeprefix(PREFIX))
        if values:
            text += " Reasons: " + ", ".join(f"`{value}`" for value in values) + "."
        yield f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {text} |"


def with_table(page: str) -> str:
    """Return the page with the table of today's metrics."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
