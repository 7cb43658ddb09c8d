"""A YAML file as a tree of nodes with positions. Anchors and merge keys are resolved, and no objects constructed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sharedvol.lint.compose.errors import LintError
from sharedvol.lint.compose.node import Node, Position, Scalar

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 60
MAX_NODES: Final = 100_000  # counted with every use of an alias, because a few lines can expand to billions

_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17}|[1-9](?:_?[0-9]){0,17})")
_BASED: Final = re.compile(r"0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}|0b[01]{1,60}")
_OCTAL: Final = re.compile(r"0[0-7]{1,20}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, Scalar]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_STRING: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Comment:
    """A comment in the file. ``alone`` means that nothing else is on its line."""

    text: str
    at: Position
    alone: bool


@dataclass(frozen=True)
class Tree:
    """A file: its documents, their comments, the first line that is not only a comment, and the empty lines."""

    documents: tuple[Node, ...]
    comments: tuple[Comment, ...]
    first_line: int
    empty: frozenset[int] = frozenset()


def parse(text: str, file: str, *, scalar: Callable[[str, Position], str] | None = None) -> Tree:
    """Parse a YAML text.

    Args:
        text: the file's content.
        file: its name, for the positions.
        scalar: replaces ``${…}`` in a text.

    Raises:
        LintError: it is not YAML, has a key twice, or is too large.
    """
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        raise LintError("lint needs ruamel.yaml, which is not installed: pip install 'sharedvol[lint]'") from None
    if len(text) > MAX_BYTES:
        raise LintError(f"the file is larger than {MAX_BYTES:,} characters: not a compose file", Position(file))
    reader = YAML(typ="safe", pure=True)
    try:
        nodes = [node for node in reader.compose_all(text) if node is not None]
        builder = _Builder(file, scalar)
        documents = tuple(builder.build(node, builder.place(node)) for node in nodes)
        spans = [span for node in nodes for span in _spans(node)]
    except YAMLError as error:
        raise _not_yaml(error, file) from None
    except RecursionError:
        raise LintError("nested too deeply", Position(file)) from None
    except LintError:
        raise
    except (ValueError, AttributeError, TypeError, IndexError, KeyError, AssertionError) as error:
        raise LintError(f"not YAML: {error}", Position(file)) from None  # the parser's errors for a damaged text
    empty = frozenset(number for number, line in enumerate(text.split("\n"), 1) if not line.strip())
    return Tree(documents, *_comments(text, file, spans), empty)


def _not_yaml(error: Any, file: str) -> LintError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    if "\\t" in what:
        what += "; indent YAML with spaces, not with tabs"
    return LintError(f"not YAML: {what}", Position(file, mark.line + 1, mark.column + 1) if mark else Position(file))


class _Builder:
    def __init__(self, file: str, scalar: Callable[[str, Position], str] | None) -> None:
        self._file, self._scalar = file, scalar
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def place(self, node: Any) -> Position:
        return Position(self._file, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: Any, at: Position) -> Node:
        self._measure(node)
        return self._build(node, at)

    def _measure(self, node: Any, depth: int = 0) -> int:
        """Return the number of nodes that it expands to. Each node is visited once, so the time is linear."""
        key = id(node)
        if key in self._open:
            raise LintError("an alias that contains itself", self.place(node))
        if depth > MAX_DEPTH:
            raise LintError(f"nested more than {MAX_DEPTH} deep: not a compose file", self.place(node))
        if key not in self._sizes:
            self._open.add(key)
            size = 1
            if isinstance(node.value, list):
                for child in node.value:
                    parts = child if isinstance(child, tuple) else (child,)
                    size += sum(self._measure(part, depth + 1) for part in parts)
            self._open.discard(key)
            if size > MAX_NODES:
                raise LintError(f"with its aliases it has more than {MAX_NODES:,} values", self.place(node))
            self._sizes[key] = size
        return self._sizes[key]

    def _build(self, node: Any, at: Position) -> Node:
        tag = str(node.tag) if str(node.tag) in {"!reset", "!override"} else ""
        if isinstance(node.value, str):
            return self._of_scalar(node, at, tag)
        if (node.value and isinstance(node.value[0], tuple)) or type(node).__name__ == "MappingNode":
            return Node(self._of_mapping(node), at, tag=tag)
        return Node([self._build(child, self.place(child)) for child in node.value], at, tag=tag)

    def _of_scalar(self, node: Any, at: Position, tag: str) -> Node:
        text: str = node.value
        plain = node.style in (None, "") and str(node.tag) != _STRING
        value: Scalar = _resolve(text) if plain or tag else text
        if isinstance(value, str) and self._scalar:
            replaced = self._scalar(value, at)
            return Node(replaced, at, text, tag)
        return Node(value, at, text, tag)

    def _of_mapping(self, node: Any) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key.value, str):
                raise LintError("a key must be a text", self.place(key))
            if str(key.tag) == _MERGE:
                merged.update(self._merge_key(value, merged))
                continue
            if key.value in found:
                raise LintError(
                    f"duplicate key {key.value!r}, first at line {found[key.value].at.line}: keep one",
                    self.place(key),
                )
            found[key.value] = self._build(value, self.place(key))
        return {**{name: child for name, child in merged.items() if name not in found}, **found}

    def _merge_key(self, value: Any, before: dict[str, Node]) -> dict[str, Node]:
        """Return the keys that ``<<`` adds. Of several mappings, the first one that has a key wins."""
        added: dict[str, Node] = {}
        several = value.value if type(value).__name__ == "SequenceNode" else [value]
        for one in several:
            if type(one).__name__ != "MappingNode":
                raise LintError("<< takes a mapping, or a list of mappings", self.place(value))
            for name, child in self._of_mapping(one).items():
                if name not in before:
                    added.setdefault(name, child)
        return added


def _resolve(text: str) -> Scalar:
    """Return the value of a plain scalar by YAML's core schema, as far as compose files use it."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _spans(node: Any) -> list[tuple[int, int]]:
    """Return the spans of scalars in the text. A ``#`` in them does not begin a comment."""
    seen: set[int] = set()
    spans: list[tuple[int, int]] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one.value, list):
            for child in one.value:
                waiting.extend(child if isinstance(child, tuple) else (child,))
        else:
            spans.append((one.start_mark.index, one.end_mark.index))
    return spans


def _comments(text: str, file: str, spans: list[tuple[int, int]]) -> tuple[tuple[Comment, ...], int]:
    inside = sorted(spans)
    found: list[Comment] = []
    first = 0
    start = number = place = 0
    for line in text.split("\n"):
        number += 1
        if not first and line.strip() and not line.lstrip().startswith(("#", "%", "---")):
            first = number
        for match in re.finditer(r"(?:^|(?<=\s))#", line):
            index = start + match.start()
            while place < len(inside) and inside[place][1] <= index:
                place += 1
            if place == len(inside) or inside[place][0] > index:
                at = Position(file, number, match.start() + 1)
                found.append(Comment(line[match.end() :].strip(), at, alone=not line[: match.start()].strip()))
                break
        start += len(line) + 1
    return tuple(found), first or number + 1
