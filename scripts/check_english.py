"""Check the English of docstrings, comments, messages and pages against the list in ``english.toml``.

``python scripts/check_english.py [FILE …]`` checks the files, or all files of the repository. Names in code do not
count. It prints ``path:line: "phrase": write "…"`` for each phrase and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "scripts/english.toml"

_FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_DIRECTIVE = re.compile(r"^#\s*(noqa|type:|mypy:|ruff:)")


@dataclass(frozen=True, slots=True)
class Finding:
    """A phrase that has a plainer word.

    Attributes:
        line: where it begins.
        phrase: as it is written there.
        advice: what to write instead.
    """

    line: int
    phrase: str
    advice: str


class WordList:
    """The phrases to replace.

    Args:
        table: the contents of ``english.toml``.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self._later: list[str] = table["later"]
        self._allowed: dict[str, list[str]] = table["allowed"]
        self._advice: list[tuple[re.Pattern[str], str]] = []
        starts = []
        for phrase, advice in table["instead"].items():
            # A blank in a phrase also matches a line break, with the comment sign or the indent of the next line.
            pattern = phrase.replace("(", "(?:").replace(" ", r"[\s#>]+")
            self._advice.append((re.compile(pattern), advice))
            starts += _alternatives(pattern)
        self._pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(starts)})(?![\w-])")

    def is_checked(self, path: str) -> bool:
        """Return whether a file of the repository is checked already."""
        return not any(path == later or path.startswith(f"{later}/") for later in self._later)

    def find(self, text: str, path: str = "") -> Iterator[tuple[int, str, str]]:
        """Find the phrases in a text: the position, the phrase and the advice for each."""
        allowed = self._allowed.get(path, [])
        for match in self._pattern.finditer(text.lower()):
            phrase = " ".join(re.sub(r"[#>]", " ", match[0]).split())
            if phrase not in allowed:
                yield match.start(), phrase, next(advice for one, advice in self._advice if one.fullmatch(match[0]))


def _alternatives(pattern: str) -> list[str]:
    """Return a pattern as several that begin with a letter each, which `re` rejects quickly at most positions."""
    group = re.match(r"\(\?:([^()]*)\)(?!\?)(.*)", pattern)
    return [start + group[2] for start in group[1].split("|")] if group else pattern.split("|")


def check(path: str, source: str, words: WordList) -> list[Finding]:
    """Return the findings in a file, given its path in the repository and its contents."""
    if next(words.find(source, path), None) is None:
        return []  # no need to parse it: most files end here
    if path.endswith(".py"):
        return sorted(_in_python(path, source, words), key=lambda one: one.line)
    prose = _without_code(source) if path.endswith(".md") else source
    return [Finding(prose.count("\n", 0, at) + 1, *found) for at, *found in words.find(prose, path)]


def _in_python(path: str, source: str, words: WordList) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for at, *found in words.find(_without_inline_code(node.value), path):
                # A literal of several lines has its line breaks in its value, except after a backslash.
                line = node.lineno + node.value.count("\n", 0, at)
                yield Finding(min(line, node.end_lineno or line), *found)
    for first, comment in _comments(source):
        for at, *found in words.find(_without_inline_code(comment), path):
            yield Finding(first + comment.count("\n", 0, at), *found)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield each comment with its first line. Comments on successive lines are one, because a phrase may wrap."""
    first, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        number = token.start[0]
        if lines and number != first + len(lines):
            yield first, "\n".join(lines)
            lines = []
        first = first if lines else number
        lines.append(token.string)
    if lines:
        yield first, "\n".join(lines)


def _without_code(page: str) -> str:
    """Return a Markdown page with blanks for its code."""
    return _without_inline_code(_FENCE.sub(_blank, page))


def _without_inline_code(text: str) -> str:
    return _CODE.sub(_blank, text) if "`" in text else text


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", "~", found[0])


def files() -> list[str]:
    """Return the files of the repository that hold prose, by their paths in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.md", "Makefile", "pyproject.toml", "scripts/*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for path in listed.stdout.splitlines() if path != str(LIST.relative_to(ROOT))]


def main(arguments: list[str]) -> int:
    """Check the files that are named, or all."""
    words = WordList(tomllib.loads(LIST.read_text()))
    named = [str(Path(name).resolve().relative_to(ROOT)) for name in arguments] or files()
    count = 0
    for path in named:
        if words.is_checked(path) and (ROOT / path).is_file():
            for one in check(path, (ROOT / path).read_text(errors="replace"), words):
                print(f'{path}:{one.line}: "{one.phrase}": write "{one.advice}"')
                count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
