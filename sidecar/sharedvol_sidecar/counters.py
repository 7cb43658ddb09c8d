"""What a counter is: each is declared once, and every output is made from its declaration.

`report.Tally` declares the counters of a pass, `BY_EVENT` the others. ``/metrics``, ``/status.json``, the status page,
the log and the summary of ``once`` read these declarations, so a new counter is one new line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal

_KEY: Final = "counter"

LABELLED: Final = MappingProxyType(
    {
        "left_files": "Files the last pass left.",
        "errors": "What went wrong and is tried again.",
        "dropped": "What was not collected and will not be as it is: no error.",
    }
)
"""The metrics that have the label ``reason``, and their help."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A value of the label ``reason`` of a metric."""

    metric: str
    reason: str


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter.

    Attributes:
        name: its key in JSON and in the log.
        kind: ``done`` for what happened, which is added up; ``left`` for what the last pass found and left.
        unit: what is counted, in the plural.
        help: what it means, in one sentence.
        metric: the name in ``/metrics``, without prefix and suffix; or a reason of a metric that several share.
        onset: of what is left: where each of them is counted once while it stays.
        section: the key of ``/status.json`` that it is below.
        line: the line in the summary of ``once``, with ``{}`` for the number; empty for none.
    """

    name: str
    kind: Literal["done", "left"]
    unit: str
    help: str
    metric: str | Reason
    onset: Reason | None = None
    section: str = ""
    line: str = ""


def done(unit: str, help: str, metric: str | Reason, line: str = "", section: str = "collected") -> Any:
    """A field for a count of what happened."""
    made = Counter("", "done", unit, help, metric, section=section, line=line)
    return field(default=0, metadata={_KEY: made})


def left(unit: str, help: str, metric: str | Reason, line: str = "", onset: Reason | None = None) -> Any:
    """A field for a count of what a pass found and left."""
    made = Counter("", "left", unit, help, metric, onset, "left", line)
    return field(default=0, metadata={_KEY: made})


def declared(counts: Any) -> tuple[Counter, ...]:
    """Return the counters that the fields of a dataclass declare."""
    return tuple(replace(one.metadata[_KEY], name=one.name) for one in fields(counts))


BY_EVENT: Final = MappingProxyType(
    {
        "pruned": Counter(
            "pruned",
            "done",
            "files",
            "Collected files that were deleted as too old or for space.",
            "pruned_files",
            section="removed",
        ),
        "not_pruned": Counter(
            "not_pruned",
            "done",
            "files",
            "Collected files that could not be deleted.",
            Reason("errors", "file"),
            section="removed",
        ),
        "catalog": Counter(
            "catalog",
            "done",
            "problems",
            "Problems with the catalog, each counted when it begins.",
            Reason("errors", "catalog"),
        ),
    }
)
"""The counters of what happens outside of passes. An event that counts says so: `report.Event.counts`."""

ByEvent = Literal["pruned", "not_pruned", "catalog"]


def reasons(counters: Iterable[Counter], metric: str) -> tuple[str, ...]:
    """Return the reasons that the counters of one metric have, each once."""
    found = [place for one in counters for place in (one.metric, one.onset) if isinstance(place, Reason)]
    return tuple(dict.fromkeys(place.reason for place in found if place.metric == metric))
