"""The report of lint, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from sharedvol.lint.compose.node import Position
from sharedvol.lint.rule import Rule, Severity
from sharedvol.text import shown

FORMAT: Final = 1


@dataclass(frozen=True)
class Finding:
    """A violation of a rule.

    Attributes:
        rule: the rule.
        severity: how bad it is in this place.
        message: what is wrong, in one line.
        at: its position.
        service: the service that it belongs to, or an empty text.
        reason: the reason in the comment that accepts it, or None.
    """

    rule: Rule
    severity: Severity
    message: str
    at: Position
    service: str = ""
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON has it."""
        fields = {
            "rule": self.rule.id,
            "severity": self.severity.name,
            "message": self.message,
            "mend": self.rule.mend,
            "file": self.at.file,
            "line": self.at.line,
            "column": self.at.column,
            "service": self.service or None,
            "page": self.rule.page,
        }
        return fields if self.reason is None else {**fields, "reason": self.reason}


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        findings: the findings that no comment accepts, by file and line.
        suppressed: the findings that a comment accepts.
        notes: what was not checked or had to be guessed, and why.
        files: the compose files, the files that they include and extend, and the scripts.
        read_by: ``docker compose``, ``docker-compose`` or ``files``.
        services: the number of replicas that was assumed for each service.
    """

    findings: tuple[Finding, ...]
    suppressed: tuple[Finding, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]
    read_by: str
    services: Mapping[str, int]

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings that are at least this severe."""
        return tuple(one for one in self.findings if one.severity >= severity)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it, see docs/lint/index.md."""
        return {
            "version": FORMAT,
            "read_by": self.read_by,
            "files": list(self.files),
            "services": dict(self.services),
            "findings": [one.as_dict() for one in self.findings],
            "suppressed": [one.as_dict() for one in self.suppressed],
            "notes": list(self.notes),
            "summary": {**self._counts(), "suppressed": len(self.suppressed)},
        }

    def _counts(self) -> dict[str, int]:
        return {
            severity.name: sum(one.severity is severity for one in self.findings) for severity in reversed(Severity)
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines for a terminal, in the format of compiler messages."""
        for one in self.findings:
            yield f"{_place(one.at)}: {one.severity.name} {one.rule.id}: {shown(one.message)}"
            yield f"    {one.rule.mend}"
        for note in self.notes:
            yield f"note: {shown(note)}"
        counts = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in self._counts().items())
        yield f"{counts}; {len(self.suppressed)} accepted by comments; read by {self.read_by}"


def _place(at: Position) -> str:
    return f"{shown(at.file)}:{at.line}:{at.column}"


def table(rules: Iterable[Rule]) -> Iterator[str]:
    """Yield a line for each rule."""
    for rule in rules:
        yield f"{rule.id}  {rule.severity.name:7}  {rule.title}"


def explanation(rule: Rule) -> Iterator[str]:
    """Yield the explanation of a rule."""
    yield f"{rule.id} ({rule.severity.name}): {rule.title}"
    yield ""
    yield rule.why
    yield ""
    yield rule.mend
    yield ""
    yield from _examples()[rule.id].split("\n")


def _examples() -> dict[str, str]:
    """Return the examples on the page of each rule. They are a file, because an installed package has no pages."""
    found: dict[str, str] = json.loads((files("sharedvol.lint") / "examples.json").read_text("utf-8"))
    return found
