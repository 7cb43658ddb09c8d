"""The Markdown pages as what they show: code, commands, files and output, each to be run, kept or compared.

What a block is, is told by its fence, or by its being indented:

``python``          run; or, in the tutorial and the how-to guides, when it begins with ``# some/path.py``, that file
``sh``              run as one script, which must end well
``text``            behind ``sh``, or at once behind ``python``: what that printed, with ``…`` for what differs from run
                    to run; else a picture, in which no line begins with a command of ours
``yaml`` …          a file of the page when its first line names one; parsed in any case
``console``         lines behind ``$`` are commands that a test elsewhere runs; the rest is a picture
indented            each line is a command: ours are run, each by itself; of others it is known why not

A page's blocks are run in order, in one directory.
"""

from __future__ import annotations

import pydoc
import re
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    r"docs/r/README": {"r": 100},
    r"docs/lint/SV\d+": {"yaml": 2, "sh": 2},
    r"docs/lint/index": {"yaml": 2, "sh": 1, "text": 1, "json": 1, "python": 1, "indented": 1},
}
"""Pages whose blocks tests/r/test_r_reference.py and tests/lint run, and how many of each kind they do."""
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if ".venv" not in page.parts),
]
RUN = ("sharedvol", "sharedvol-sidecar", "mkdir", "make")
DATA = {"yaml": "# ", "toml": "# ", "ini": "# ", "sql": "-- ", "json": "", "dockerfile": "# ", "r": "# "}
"""Kinds that are no programs to run here, and how their first line begins where it names the file."""
PICTURES = ("text", "")


@dataclass(frozen=True)
class Block:
    """A piece of code of a page.

    Attributes:
        page: the file.
        line: where it begins there, from 1.
        kind: the fence's first word; ``indented``; empty where the fence says none.
        text: what is in it, ending with a newline.
        behind: whether nothing stands between it and the block before.
        wants_containers: whether only `make test-containers` can run it: it asks Docker, or comes behind one that does.
    """

    page: Path
    line: int
    kind: str
    text: str
    behind: bool = False
    wants_containers: bool = False

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is, by its first line; in the pages that go from step to step."""
        if not is_story(self.page):
            return None
        start = {"python": "# ", **DATA}.get(self.kind)
        found = re.match(rf"{start}([\w./-]+\.\w+|Dockerfile)\n", self.text) if start else None
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """The commands of an indented block, or of one with prompts."""
        if self.kind == "console":
            return re.findall(r"^\$ (.*)", self.text, re.MULTILINE)
        if self.kind != "indented":
            return []
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order; directives of Sphinx are no blocks."""
    return list(_blocks(page))


def is_story(page: Path) -> bool:
    """Whether a page begins with nothing and goes on from step to step: the tutorial and the how-to guides."""
    return page.name == "tutorial.md" or page.parent.name == "howto"


def is_run_elsewhere(page: Path) -> bool:
    """Whether tests of its own run what the page shows."""
    return kinds_elsewhere(page) is not None


def kinds_elsewhere(page: Path) -> dict[str, int] | None:
    """How many blocks of each kind are run by tests of its own; None where that is not done."""
    name = str(page.relative_to(ROOT).with_suffix(""))
    return next((kinds for pattern, kinds in ELSEWHERE.items() if re.fullmatch(pattern, name)), None)


def _blocks(page: Path) -> Iterator[Block]:
    containers = behind = False
    for token in MarkdownIt().parse(page.read_text()):
        line = (token.map or [0])[0] + 1
        is_directive = token.info.startswith("{") and page.is_relative_to(ROOT / "docs")
        if token.type == "fence" and not is_directive:
            kind = token.info.split()[0] if token.info.split() else ""
            containers |= kind == "sh" and re.search(r"\b(docker|curl)\b", token.content) is not None
            yield Block(page, line, kind, token.content, behind, containers)
        elif token.type == "code_block":
            yield Block(page, line, "indented", token.content, behind)
        elif token.type == "html_block" and not token.content.startswith("<!--"):
            yield Block(page, line, "html", token.content, behind)
        behind = token.type in ("fence", "code_block")


def docstring_example(name: str) -> str:
    """The code that the docstring of this module, class or function shows."""
    return textwrap.dedent("".join(re.findall(r"::\n\n((?: .*\n|\n)+)", f"{pydoc.getdoc(_named(name))}\n")))


def _named(name: str) -> object:
    found = pydoc.locate(name)
    assert found is not None, name
    return found


def outputs(blocks: list[Block]) -> Iterator[tuple[Block, str | None]]:
    """Each block that is not output, with the output that the page shows for it."""
    for number, block in enumerate(blocks):
        if block.kind in PICTURES:
            continue
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        is_output = after is not None and after.kind == "text" and (block.kind == "sh" or after.behind)
        yield block, after.text if after is not None and is_output and block.kind in ("sh", "python") else None


def printed_by(block: Block, command: list[str], place: Path, environment: Mapping[str, str], seconds: float) -> str:
    """What a command of a block prints, which must end well."""
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{block}: {' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def compare(block: Block, shown: str | None, printed: str) -> None:
    """What a block shows, if it shows any, is what it printed."""
    assert shown is None or agrees(shown, printed), f"{block} shows\n{shown}\nand it printed\n{printed}"


def agrees(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows.

    A line ``…`` stands for any lines, none among them; ``…`` within a line for anything on it. Blanks around lines, and
    several for one, count for nothing.
    """
    pattern = ""
    for line in shown.strip().splitlines():
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("…")]
        pattern += r"(?:.*\n)*?" if line.strip() == "…" else r" ?.* ?".join(pieces) + r"\n"
    return (
        re.fullmatch(pattern, "".join(" ".join(line.split()) + "\n" for line in printed.strip().splitlines()))
        is not None
    )
