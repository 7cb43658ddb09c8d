"""The check: read the files, run every rule, and separate the accepted findings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sharedvol.lint.compose.docker import NoCompose, read_config, with_positions
from sharedvol.lint.compose.errors import LintError
from sharedvol.lint.compose.node import Node
from sharedvol.lint.compose.reader import ReadProject, read, read_text
from sharedvol.lint.project import Host, Project, Script
from sharedvol.lint.report import Finding, Report
from sharedvol.lint.rule import Rule, Severity, Violation
from sharedvol.lint.rules import ALL, UNUSED, WRONG
from sharedvol.lint.suppressions import Suppression, collect


@dataclass(frozen=True)
class Options:
    """What to check, and how.

    Attributes:
        scripts: shell scripts to check together with the compose files.
        replicas: numbers of replicas that override those in the files.
        host_memory: bytes of memory of the host; None means the memory of this machine.
        env_files: files to read instead of the ``.env`` next to the first compose file.
        profiles: check only services of these profiles and services without a profile. Empty means all services.
        reader: ``compose`` for Docker Compose, ``files`` for the built-in parser, or ``auto`` for Compose if it is
            installed and otherwise the parser.
    """

    scripts: Sequence[str] = ()
    replicas: Mapping[str, int] | None = None
    host_memory: int | None = None
    env_files: Sequence[str] = ()
    profiles: Sequence[str] = ()
    reader: str = "auto"


def lint(files: Sequence[str], options: Options | None = None) -> Report:
    """Check compose files for hazards of replicas.

    Args:
        files: compose files, merged in this order as ``docker compose -f FILE -f FILE`` does.
        options: what to check, and how.

    Raises:
        LintError: a file cannot be read; the message says which one, and where the error is.
    """
    options = options or Options()
    source = read(files, os.environ, options.env_files)
    node, read_by = _project(files, options, source)
    scripts = [Script(name, read_text(name, given=True)) for name in options.scripts]
    host = Host(options.host_memory, True) if options.host_memory is not None else Host(_memory_here(), False)
    project = Project(_of_profiles(node, options.profiles), replicas=options.replicas, scripts=scripts, host=host)
    names = {service.name for service in project.services}
    for name in sorted((options.replicas or {}).keys() - names):
        known = ", ".join(sorted(names)) or "none"
        raise LintError(f"cannot set the replicas of {name!r}: there is no such service; services: {known}")
    if not names:
        source.notes.append("these files have no services")
    suppressions = collect(source.trees, scripts)
    left, accepted = _check_rules(project, suppressions)
    return Report(
        tuple(sorted([*left, *_check_suppressions(suppressions)], key=_order)),
        tuple(sorted(accepted, key=_order)),
        tuple(source.notes),
        (*source.trees, *(script.name for script in scripts)),
        read_by,
        {service.name: service.replicas for service in project.services},
    )


def _project(files: Sequence[str], options: Options, source: ReadProject) -> tuple[Node, str]:
    if options.reader == "files":
        return source.project, "files"
    try:
        found, command = read_config(files, options.env_files, options.profiles or ("*",))
    except NoCompose as error:
        if options.reader == "compose":
            raise LintError(f"docker compose cannot read these files: {error}; try --reader files") from None
        source.notes.append(f"the built-in parser was used: {error}")
        return source.project, "files"
    source.notes.clear()  # they are of the built-in parser, which supplies only the positions
    return with_positions(found, source.project), command


def _of_profiles(node: Node, profiles: Sequence[str]) -> Node:
    """Return the project with the services that ``--profile`` starts, or all services if no profile is chosen."""
    if not profiles or "*" in profiles:
        return node
    services = {
        name: body
        for name, body in node.get("services").map.items()
        if not body.get("profiles").items or {one.text for one in body.get("profiles").items} & set(profiles)
    }
    return node.having(services=Node(dict(services), node.get("services").at))


def _memory_here() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _check_rules(project: Project, suppressions: Sequence[Suppression]) -> tuple[list[Finding], list[Finding]]:
    left: list[Finding] = []
    accepted: list[Finding] = []
    for rule in ALL:
        for found in dict.fromkeys(rule.check(project)):
            covering = [one for one in suppressions if one.covers(rule.id, found)]
            for one in covering:
                one.used.add(rule.id)
            if covering:
                accepted.append(_finding(rule, found, covering[0].reason))
            else:
                left.append(_finding(rule, found))
    return left, accepted


def _finding(rule: Rule, found: Violation, reason: str | None = None) -> Finding:
    severity: Severity = rule.severity if found.severity is None else found.severity
    return Finding(rule, severity, found.message, found.at, found.service, reason)


def _check_suppressions(suppressions: Sequence[Suppression]) -> Iterator[Finding]:
    """Find comments that accept nothing, so that no comment outlives its finding."""
    known = {rule.id for rule in ALL}
    for one in suppressions:
        if not one.rules:
            yield _finding(WRONG, Violation(one.at, "it names no rule, so it accepts nothing"))
        elif not one.reason:
            yield _finding(
                WRONG, Violation(one.at, f"{', '.join(one.rules)}: it gives no reason, so it accepts nothing")
            )
        else:
            for name in one.rules:
                if name not in known:
                    yield _finding(WRONG, Violation(one.at, f"there is no rule {name}"))
                elif name not in one.used:
                    yield _finding(UNUSED, Violation(one.at, f"there is no finding of {name} here: remove the comment"))


def _order(one: Finding) -> tuple[object, ...]:
    return (one.at, one.rule.id, one.message)
