"""What a rule is, and what it finds."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharedvol.lint.compose.node import Position
from sharedvol.lint.project import Project, Service


class Severity(enum.IntEnum):
    """How bad it is; the names are those of SARIF's levels."""

    note = 1
    warning = 2
    error = 3


@dataclass(frozen=True)
class Found:
    """A place where a rule is broken.

    Attributes:
        at: where.
        message: what is wrong, in one line.
        service: whose it is; empty where it is nobody's.
        severity: instead of the rule's own.
    """

    at: Position
    message: str
    service: str = ""
    severity: Severity | None = None


Check = Callable[[Project], Iterator[Found]]


@dataclass(frozen=True)
class Rule:
    """A hazard of replicas.

    Attributes:
        id: for ever the same.
        title: what is wrong, in a few words.
        severity: how bad it is for a replicated service.
        why: what happens with several replicas, and by which mechanism.
        mend: what to do.
        check: finds it.
        scales: it is told of a service with one replica, too, as a note.
    """

    id: str
    title: str
    severity: Severity
    why: str
    mend: str
    check: Check
    scales: bool = False

    @property
    def page(self) -> str:
        """Its page, below the documentation."""
        return f"docs/lint/{self.id}.md"


def rule(id: str, title: str, severity: Severity, *, why: str, mend: str) -> Callable[[Check], Rule]:
    """Make a rule of a function that looks at the whole project."""

    def of(check: Check) -> Rule:
        return Rule(
            id, title, severity, " ".join(why.split()), " ".join(mend.split()), check, isinstance(check, _OfEach)
        )

    return of


@dataclass(frozen=True)
class _OfEach:
    check: Callable[[Project, Service], Iterator[Found]]

    def __call__(self, project: Project) -> Iterator[Found]:
        for service in project.services:
            if service.replicated or service.grows:
                for found in self.check(project, service):
                    yield _scaled(found, service)


def of_each(check: Callable[[Project, Service], Iterator[Found]]) -> Check:
    """Ask it of each service that has replicas; of one that may get some its finding is a note."""
    return _OfEach(check)


def of_replicated(check: Callable[[Project, Service], Iterator[Found]]) -> Check:
    """Ask it only of the services that have replicas."""

    def ask(project: Project) -> Iterator[Found]:
        for service in project.replicated:
            for found in check(project, service):
                yield _scaled(found, service)

    return ask


def _scaled(found: Found, service: Service) -> Found:
    if service.replicated:
        return Found(found.at, f"service {service.name!r}: {found.message}", service.name, found.severity)
    message = f"service {service.name!r}: {found.message} (once it has replicas)"
    return Found(found.at, message, service.name, Severity.note)
