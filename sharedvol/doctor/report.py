"""The doctor's report: a verdict for each line and for the whole volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sharedvol.doctor.advice import CATALOGUE, meaning

Verdict = Literal["ok", "degraded", "unsafe", "unknown"]
ORDER: Final[tuple[Verdict, ...]] = ("ok", "unknown", "degraded", "unsafe")
"""From best to worst."""

VERSION: Final = 1
"""The version of the JSON format."""


class Result(NamedTuple):
    """The result of an experiment: its verdict and what was observed."""

    verdict: Verdict
    detail: str


def ok(detail: str) -> Result:
    """Return the verdict for a feature that works."""
    return Result("ok", detail)


def degraded(detail: str) -> Result:
    """Return the verdict for a feature that is refused with an error, or is weaker than on a local file system."""
    return Result("degraded", detail)


def unsafe(detail: str) -> Result:
    """Return the verdict for a feature that does not do what it promises, hangs, or loses data."""
    return Result("unsafe", detail)


def unknown(detail: str) -> Result:
    """Return the verdict for an experiment that could not run."""
    return Result("unknown", detail)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        id: a stable id such as ``locks.flock``. The prefix ``through.`` or ``peer.`` marks an experiment across mounts
            or containers.
        verdict: ``ok``, ``degraded``, ``unsafe`` or ``unknown``.
        detail: what was observed.
    """

    id: str
    verdict: Verdict
    detail: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding as JSON has it."""
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
        directory: the path as it was given.
        findings: the findings, in the order of the experiments.
        peer: the name of the meeting, if two doctors met.
    """

    directory: str
    findings: tuple[Finding, ...]
    peer: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings."""
        return worst(finding.verdict for finding in self.findings)

    def of(self, id: str) -> Finding | None:
        """Return the finding with this id, or None."""
        return next((finding for finding in self.findings if finding.id == id), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as ``--json`` prints it, see docs/doctor.md."""
        return {
            "version": VERSION,
            "directory": self.directory,
            "peer": self.peer,
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict, or ``ok`` without verdicts."""
    return max(verdicts, key=ORDER.index, default="ok")


__all__ = ["CATALOGUE", "Finding", "Report", "Result", "Verdict", "degraded", "ok", "unknown", "unsafe", "worst"]
