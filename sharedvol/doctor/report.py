"""What the doctor found: a verdict for each line, and for the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sharedvol.doctor.advice import CATALOGUE, meaning

Verdict = Literal["ok", "degraded", "unsafe", "unknown"]
ORDER: Final[tuple[Verdict, ...]] = ("ok", "unknown", "degraded", "unsafe")
"""From best to worst."""

VERSION: Final = 1
"""Of the JSON."""


class Result(NamedTuple):
    """What an experiment says: its verdict, and what was seen."""

    verdict: Verdict
    detail: str


def ok(detail: str) -> Result:
    return Result("ok", detail)


def degraded(detail: str) -> Result:
    """It refuses loudly, or is weaker than elsewhere."""
    return Result("degraded", detail)


def unsafe(detail: str) -> Result:
    """It says one thing and does another, hangs, or loses what it was given."""
    return Result("unsafe", detail)


def unknown(detail: str) -> Result:
    """The experiment could not be made."""
    return Result("unknown", detail)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        id: stable, such as ``locks.flock``; ``through.`` or ``peer.`` before it tells between whom.
        verdict: ``ok``, ``degraded``, ``unsafe`` or ``unknown``.
        detail: what was seen.
    """

    id: str
    verdict: Verdict
    detail: str

    def as_dict(self) -> dict[str, str]:
        about = meaning(self.id)
        todo = "" if self.verdict == "ok" else about.todo
        return {
            "id": self.id,
            "title": about.title,
            "verdict": self.verdict,
            "detail": self.detail,
            "why": about.why,
            "todo": todo,
        }


@dataclass(frozen=True)
class Report:
    """All findings about one directory.

    Attributes:
        directory: as it was named.
        findings: in the order of the experiments.
        peer: the name of the meeting, where two doctors met.
    """

    directory: str
    findings: tuple[Finding, ...]
    peer: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst(finding.verdict for finding in self.findings)

    def of(self, id: str) -> Finding | None:
        """The finding with that id."""
        return next((finding for finding in self.findings if finding.id == id), None)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``, see docs/doctor.md."""
        return {
            "version": VERSION,
            "directory": self.directory,
            "peer": self.peer,
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them; ``ok`` where there are none."""
    return max(verdicts, key=ORDER.index, default="ok")


__all__ = ["CATALOGUE", "Finding", "Report", "Result", "Verdict", "degraded", "ok", "unknown", "unsafe", "worst"]
