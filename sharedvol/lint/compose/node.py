"""A value of a compose file with its position."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Scalar = str | int | float | bool | None

_SIZE: Final = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([bkmgt])?i?b?", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h|d|w))+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h|d|w)", re.ASCII)
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, order=True)
class Position:
    """A position in a file. ``line`` and ``column`` count from 1."""

    file: str = ""
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Node:
    """A scalar, a mapping or a list, and its position.

    Its methods never fail. For a value that is absent or of another type they return an empty result.

    Attributes:
        value: the scalar, the mapping of names to nodes, or the list of nodes.
        at: its position; for a value in a mapping, that of the key.
        raw: the text in the file, before `${…}` was replaced.
        tag: ``!reset`` or ``!override``.
    """

    value: Scalar | dict[str, Node] | list[Node]
    at: Position = Position()
    raw: str = ""
    tag: str = ""

    def get(self, *names: str) -> Node:
        """Return the value at a path of names, or an empty one if it is absent."""
        node = self
        for name in names:
            node = node.map.get(name, EMPTY)
        return node

    @property
    def map(self) -> Mapping[str, Node]:
        """The mapping, or an empty one."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> Sequence[Node]:
        """The list, or an empty one."""
        return self.value if isinstance(self.value, list) else ()

    @property
    def present(self) -> bool:
        """Whether the value is not null."""
        return self.value is not None

    @property
    def text(self) -> str:
        """The scalar as Compose would write it into an environment, or an empty text."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return "" if self.value is None or isinstance(self.value, dict | list) else str(self.value)

    @property
    def true(self) -> bool:
        """Whether the scalar is a form of true."""
        return self.value is True or (isinstance(self.value, str) and self.value.lower() in {"true", "yes", "on", "1"})

    @property
    def number(self) -> int | None:
        """The whole number, which may be written as a text, or None."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        text = self.text.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    @property
    def bytes(self) -> int | None:
        """The bytes of a size such as ``512M`` (Compose file reference, "Specifying byte values"), or None."""
        match = _SIZE.fullmatch(self.text.strip())
        if match is None or isinstance(self.value, bool):
            return None
        return int(float(match[1]) * _UNITS[(match[2] or "").lower()])

    @property
    def seconds(self) -> float | None:
        """The seconds of a duration such as ``1m30s`` or a bare number (Compose, "Specifying durations"), or None."""
        text = self.text.strip().replace(" ", "")
        if isinstance(self.value, bool) or len(text) > 100:
            return None
        if _DURATION.fullmatch(text):
            return float(sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text)))
        try:
            seconds = float(text)
        except ValueError:
            return None
        return seconds if 0 <= seconds < 1e12 else None

    def scalars(self) -> Iterator[Node]:
        """Yield every scalar in it."""
        if isinstance(self.value, dict):
            for child in self.value.values():
                yield from child.scalars()
        elif isinstance(self.value, list):
            for child in self.value:
                yield from child.scalars()
        elif self.value is not None:
            yield self

    def plain(self) -> Any:
        """Return it without positions, as JSON has it."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def having(self, **changed: Node) -> Node:
        """Return this mapping with some values replaced."""
        return Node({**self.map, **changed}, self.at, tag=self.tag)

    def without(self, *names: str) -> Node:
        """Return this mapping without some names."""
        return Node({name: child for name, child in self.map.items() if name not in names}, self.at, tag=self.tag)


EMPTY: Final = Node(None)
