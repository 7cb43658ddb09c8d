"""Comments such as ``# sharedvol: ignore SV012 reason``, which accept a finding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sharedvol.lint.compose.node import Node, Position
from sharedvol.lint.compose.yaml_tree import Comment, Tree
from sharedvol.lint.project import Script
from sharedvol.lint.rule import Violation

_FORM: Final = re.compile(r"sharedvol:\s*ignore\b[\s:]*((?:SV\d+[\s,]*)*)(.*)", re.IGNORECASE)
_SHELL: Final = re.compile(r"(?:^|(?<=\s))#(\s*sharedvol:.*)")


@dataclass
class Suppression:
    """A comment that accepts findings.

    Attributes:
        rules: the ids of the rules.
        reason: why the findings are accepted.
        at: the position of the comment.
        line: the line that it applies to; 0 means the whole file.
        service: the service that it applies to, if it is on the first line of a service.
        used: the ids of the rules whose findings it has accepted.
    """

    rules: tuple[str, ...]
    reason: str
    at: Position
    line: int
    service: str = ""
    used: set[str] = field(default_factory=set)

    def covers(self, rule: str, found: Violation) -> bool:
        """Return whether it accepts a violation of a rule."""
        if rule not in self.rules or not self.reason:
            return False
        if self.service and found.service == self.service:
            return True
        return self.at.file == found.at.file and self.line in (0, found.at.line)


def collect(trees: Mapping[str, Tree], scripts: Iterable[Script]) -> list[Suppression]:
    """Return all suppressions in the files and scripts."""
    found: list[Suppression] = []
    for tree in trees.values():
        heads = dict(_heads(tree.documents))
        for comment in tree.comments:
            line = _line_of(comment, tree)
            found.extend(_read(comment.text, comment.at, line, heads.get(line, "")))
    for script in scripts:
        found.extend(_of_script(script))
    return found


def _heads(documents: Iterable[Node]) -> Iterator[tuple[int, str]]:
    for document in documents:
        for name, body in document.get("services").map.items():
            yield body.at.line, name


def _line_of(comment: Comment, tree: Tree) -> int:
    """Return the line that a comment applies to: its own, the next line with content, or 0 at the top of the file."""
    if not comment.alone:
        return comment.at.line
    if comment.at.line < tree.first_line:
        return 0
    alone = {one.at.line for one in tree.comments if one.alone} | tree.empty
    line = comment.at.line
    while line in alone:
        line += 1
    return line


def _of_script(script: Script) -> Iterator[Suppression]:
    lines = script.text.split("\n")
    for number, line in enumerate(lines, 1):
        match = _SHELL.search(line)
        if match:
            about = number
            while about <= len(lines) and _is_no_command(lines[about - 1]):
                about += 1
            yield from _read(match[1].strip(), Position(script.name, number, match.start() + 1), about, "")


def _is_no_command(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _read(text: str, at: Position, line: int, service: str) -> Iterator[Suppression]:
    match = _FORM.match(text)
    if match:
        rules = tuple(re.findall(r"SV\d+", match[1].upper()))
        yield Suppression(rules, match[2].strip().lstrip(":,;- "), at, line, service)
