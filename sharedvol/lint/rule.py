"""Rules and violations."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharedvol.lint.compose.node import Position
from sharedvol.lint.project import ComposeService, Project


class Severity(enum.IntEnum):
    """The severity of a finding, with the names of SARIF's levels."""

    note = 1
    warning = 2
    error = 3


@dataclass(frozen=True)
class Violation:
    """A place that violates a rule.

    Attributes:
        at: its position.
        message: what is wrong, in one line.
        service: the service that it belongs to, or an empty text.
        severity: overrides the severity of the rule.
    """

    at: Position
    message: str
    service: str = ""
    severity: Severity | None = None


Check = Callable[[Project], Iterator[Violation]]
ServiceCheck = Callable[[ComposeService], Iterator[Violation]]


@dataclass(frozen=True)
class Rule:
    """A hazard of replicas.

    Attributes:
        id: the stable id.
        title: what is wrong, in a few words.
        severity: how bad it is for a replicated service.
        why: what happens with several replicas, and by which mechanism.
        mend: what to do.
        check: finds the violations.
    """

    id: str
    title: str
    severity: Severity
    why: str
    mend: str
    check: Check

    @property
    def page(self) -> str:
        """The path of its page in the documentation."""
        return f"docs/lint/{self.id}.md"


def rule(id: str, title: str, severity: Severity, *, why: str, mend: str) -> Callable[[Check], Rule]:
    """Make a rule of a function that checks the whole project."""

    def of(check: Check) -> Rule:
        return Rule(id, title, severity, " ".join(why.split()), " ".join(mend.split()), check)

    return of


def of_each(check: ServiceCheck) -> Check:
    """Check each service that has replicas or may get some. For the latter a violation is a note."""

    def check_project(project: Project) -> Iterator[Violation]:
        for service in project.services:
            if service.replicated or service.grows:
                for found in check(service):
                    yield _scaled(found, service)

    return check_project


def of_replicated(check: ServiceCheck) -> Check:
    """Check only the services that have replicas."""

    def check_project(project: Project) -> Iterator[Violation]:
        for service in project.replicated:
            for found in check(service):
                yield _scaled(found, service)

    return check_project


def _scaled(found: Violation, service: ComposeService) -> Violation:
    if service.replicated:
        return Violation(found.at, f"service {service.name!r}: {found.message}", service.name, found.severity)
    message = f"service {service.name!r}: {found.message} (once it has replicas)"
    return Violation(found.at, message, service.name, Severity.note)
