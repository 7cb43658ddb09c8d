"""Read the files, ask every rule, take away what is accepted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sharedvol.lint.compose.docker import NoCompose, config, placed
from sharedvol.lint.compose.errors import LintError
from sharedvol.lint.compose.node import Node
from sharedvol.lint.compose.reader import Source, read, read_text
from sharedvol.lint.project import Host, Project, Script
from sharedvol.lint.report import Finding, Report
from sharedvol.lint.rule import Found, Rule, Severity
from sharedvol.lint.rules import ALL, UNUSED, WRONG
from sharedvol.lint.suppressions import Suppression, collect


@dataclass(frozen=True)
class Options:
    """What is looked at, and how.

    Attributes:
        scripts: shell scripts to look at beside the compose files.
        replicas: numbers of replicas that stand above the files'.
        host_memory: bytes of the machine that the project runs on; None: this machine's.
        env_files: in the place of the ``.env`` beside the first file.
        profiles: look only at the services of these, and those of none; empty: at all.
        reader: ``auto``: Compose where it is there, else the files themselves; ``compose``; ``files``.
    """

    scripts: Sequence[str] = ()
    replicas: Mapping[str, int] | None = None
    host_memory: int | None = None
    env_files: Sequence[str] = ()
    profiles: Sequence[str] = ()
    reader: str = "auto"


def lint(files: Sequence[str], options: Options | None = None) -> Report:
    """Look for what replicas would trip over.

    Args:
        files: compose files, merged in this order as ``docker compose -f FILE -f FILE`` does.
        options: the rest.

    Raises:
        LintError: something cannot be read; the message says what, and where.
    """
    options = options or Options()
    source = read(files, os.environ, options.env_files)
    node, read_by = _project(files, options, source)
    scripts = [Script(name, read_text(name, given=True)) for name in options.scripts]
    host = Host(options.host_memory, True) if options.host_memory is not None else Host(_memory_here(), False)
    project = Project(_of_profiles(node, options.profiles), replicas=options.replicas, scripts=scripts, host=host)
    names = {service.name for service in project.services}
    for name in sorted((options.replicas or {}).keys() - names):
        raise LintError(
            f"there is no service {name!r} to have replicas; there are {', '.join(sorted(names)) or 'none'}"
        )
    if not names:
        source.notes.append("there is no service in these files")
    suppressions = collect(source.trees, scripts)
    left, accepted = _judged(project, suppressions)
    return Report(
        tuple(sorted([*left, *_of_suppressions(suppressions)], key=_order)),
        tuple(sorted(accepted, key=_order)),
        tuple(source.notes),
        (*source.trees, *(script.name for script in scripts)),
        read_by,
        {service.name: service.replicas for service in project.services},
    )


def _project(files: Sequence[str], options: Options, source: Source) -> tuple[Node, str]:
    if options.reader == "files":
        return source.project, "files"
    try:
        found, command = config(files, options.env_files, options.profiles or ("*",))
    except NoCompose as error:
        if options.reader == "compose":
            raise LintError(f"docker compose does not read these files: {error}; or use --reader files") from None
        source.notes.append(f"the files were read here, not by docker compose: {error}")
        return source.project, "files"
    source.notes.clear()  # of the other reader, which is asked for the places only
    return placed(found, source.project), command


def _of_profiles(node: Node, profiles: Sequence[str]) -> Node:
    """The services that ``--profile`` starts; without a choice all, whatever their profiles."""
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


def _judged(project: Project, suppressions: Sequence[Suppression]) -> tuple[list[Finding], list[Finding]]:
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


def _finding(rule: Rule, found: Found, reason: str | None = None) -> Finding:
    severity: Severity = rule.severity if found.severity is None else found.severity
    return Finding(rule, severity, found.message, found.at, found.service, reason)


def _of_suppressions(suppressions: Sequence[Suppression]) -> Iterator[Finding]:
    """Comments that accept nothing: told, so that they do not outlive what they were about."""
    known = {rule.id for rule in ALL}
    for one in suppressions:
        if not one.rules:
            yield _finding(WRONG, Found(one.at, "no rule is named: nothing is accepted"))
        elif not one.reason:
            yield _finding(WRONG, Found(one.at, f"{', '.join(one.rules)}: no reason is given: nothing is accepted"))
        else:
            for name in one.rules:
                if name not in known:
                    yield _finding(WRONG, Found(one.at, f"there is no rule {name} to be accepted"))
                elif name not in one.used:
                    yield _finding(UNUSED, Found(one.at, f"{name} is not found here: take the comment away"))


def _order(one: Finding) -> tuple[object, ...]:
    return (one.at, one.rule.id, one.message)
