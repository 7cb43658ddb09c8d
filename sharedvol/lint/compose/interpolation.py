"""Variables such as ``${NAME:-default}`` in compose files, and the ``.env`` files that set them."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Final

_NAME: Final = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*")
_OPERATORS: Final = (":-", ":?", ":+", "-", "?", "+")
_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*[=:]\s*(.*)", re.DOTALL)
_DEEPEST: Final = 20  # defaults within defaults

LONGEST: Final = 131_072
"""Most characters of a text after interpolation. No program can be started with more, see execve(2)."""

MOST: Final = 4_000_000
"""Most characters that all interpolated texts of a project, or of one env file, may have together."""


class TooMuch(Exception):
    """Variables expand to more text than any file needs, because they refer to each other or are used many times."""


def interpolate(text: str, values: Mapping[str, str], problem: Callable[[str], None]) -> str:
    """Return ``text`` with its variables replaced (Compose file reference, "Interpolation").

    Args:
        text: the text in the file.
        values: the variables.
        problem: gets a message about each variable that must be set and each form that is not valid.

    Raises:
        TooMuch: the result is longer than `LONGEST`.
    """
    return _interpolate(text, values, problem, 0)


def _interpolate(text: str, values: Mapping[str, str], problem: Callable[[str], None], depth: int) -> str:
    if "$" not in text:
        return text
    parts: list[str] = []
    rest = length = 0
    while (dollar := text.find("$", rest)) >= 0:
        parts.append(text[rest:dollar])
        rest = dollar + 1
        if text.startswith("$", rest):
            parts.append("$")
            rest += 1
        elif match := _NAME.match(text, rest):
            parts.append(_plain(match[0], values, problem))
            rest = match.end()
        elif text.startswith("{", rest) and depth < _DEEPEST and (end := _end(text, rest)) > 0:
            parts.append(_braced(text[rest + 1 : end], values, problem, depth))
            rest = end + 1
        else:
            problem(f"{text!r} is not a valid interpolation: write $$ for a dollar sign")
            return text
        length += len(parts[-1])
        if length > LONGEST:  # a few lines of an env file that double each other expand to terabytes
            raise TooMuch(f"its variables make it longer than {LONGEST:,} characters")
    return "".join(parts) + text[rest:]


def _plain(name: str, values: Mapping[str, str], problem: Callable[[str], None]) -> str:
    if name not in values:
        problem(f"the variable {name} is not set: an empty text is used")
    return values.get(name, "")


def _end(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{" and (index == start or text[index - 1] == "$"):
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return -1


def _braced(inner: str, values: Mapping[str, str], problem: Callable[[str], None], depth: int) -> str:
    match = _NAME.match(inner)
    if match is None:
        problem(f"${{{inner}}} is no valid interpolation")
        return ""
    name, tail = match[0], inner[match.end() :]
    if not tail:
        return _plain(name, values, problem)
    operator = next((one for one in _OPERATORS if tail.startswith(one)), None)
    if operator is None:
        problem(f"${{{inner}}} is no valid interpolation")
        return ""
    word = tail[len(operator) :]
    value = values.get(name)
    is_there = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("+"):
        return _interpolate(word, values, problem, depth + 1) if is_there else ""
    if is_there:
        return value or ""
    if operator.endswith("?"):
        problem(f"the variable {name} must be set{': ' + word if word else ''}: an empty text is used")
        return ""
    return _interpolate(word, values, problem, depth + 1)


def read_env(text: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a ``.env`` file (Compose, "Env file syntax").

    Args:
        text: the file's content. Lines that are not assignments are skipped.
        values: the variables that are already set, for ``$NAME`` in the file.

    Raises:
        TooMuch: its variables expand to more than `MOST` characters, or one of them to more than `LONGEST`.
    """
    found: dict[str, str] = {}
    known = ChainMap(dict(values), found)
    length = 0
    lines = iter(text.splitlines())
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        name, value = match[1], match[2].strip()
        quote = value[:1]
        if quote in {"'", '"'}:
            while _closing(value, quote) < 0 and (more := next(lines, None)) is not None:
                value += f"\n{more}"
            end = _closing(value, quote)
            value = value[1:end] if end > 0 else value[1:]
            if quote == "'":
                found[name] = value.replace("\\'", "'")
                continue
            value = re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t", "r": "\r"}.get(escape[1], escape[1]), value)
        else:
            value = re.split(r"\s+#", f" {value}" if value.startswith("#") else value)[0].strip()
        found[name] = interpolate(value, known, lambda _: None) if "$" in value else value
        length += len(found[name])
        if length > MOST:
            raise TooMuch(f"its variables expand to more than {MOST:,} characters")
    return found


def _closing(value: str, quote: str) -> int:
    escaped = False
    for index in range(1, len(value)):
        if escaped:
            escaped = False
        elif value[index] == "\\":
            escaped = True
        elif value[index] == quote:
            return index
    return -1
