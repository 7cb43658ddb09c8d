"""The floors of the two packages, the imports between them, and the picture in ARCHITECTURE.md.

``python scripts/architecture.py`` writes the picture again. A test reads the same floors and imports.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- picture -->\n", "<!-- end of picture -->"

LIBRARY = (
    ("cli",),
    ("lint", "integrations"),
    ("sharedvol", "health"),
    ("cache", "migrations"),
    ("volume",),
    ("locks", "logs"),
    ("publishing", "paths"),
    ("network", "database", "identity", "doctor"),
    ("native",),
    ("filesystem", "errors", "host", "text", "forks", "mounts", "arguments", "environment"),
)
"""The parts of ``sharedvol``, the highest floor first. A part imports from lower floors only, never from its own."""

SIDECAR = (
    ("__main__", "cli"),
    ("commands",),
    ("demo", "service"),
    ("collect", "web"),
    ("follow", "config"),
    ("transfer", "retention"),
    ("catalog",),
    ("destination",),
    ("spool",),
    ("monitor",),
    ("fs",),
    ("events",),
    ("event",),
    ("counters", "errors", "humanize"),
)
"""The parts of ``sharedvol_sidecar``, likewise."""

PACKAGES = {
    "sharedvol": (ROOT / "sharedvol", LIBRARY),
    "sharedvol_sidecar": (ROOT / "sidecar/sharedvol_sidecar", SIDECAR),
}


@dataclass(frozen=True, order=True)
class Import:
    """An import at run time.

    Attributes:
        importer: the module that imports, without its package: ``locks.file.lock``; empty for the package itself.
        imported: the module that is imported, likewise.
        name: what is imported from it; empty for the module itself.
        line: where.
    """

    importer: str
    imported: str
    name: str
    line: int


def modules(package: str) -> dict[str, Path]:
    """Return the files of a package by their modules."""
    root, _ = PACKAGES[package]
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(package: str) -> tuple[Import, ...]:
    """Return the imports between the modules of a package. What is for type checkers alone does not count."""
    known = modules(package)
    found = []
    for module, path in known.items():
        waiting: list[ast.AST] = [ast.parse(path.read_text())]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [Import(module, *one, node.lineno) for one in _imported(node, package, known)]
            elif isinstance(node, ast.stmt | ast.Module | ast.ExceptHandler) and not _is_for_types(node):
                waiting += ast.iter_child_nodes(node)
    return tuple(sorted(found))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imported(node: ast.Import | ast.ImportFrom, package: str, known: dict[str, Path]) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        names = [(alias.name, "") for alias in node.names]
    else:
        names = [(node.module or "", alias.name) for alias in node.names]
    for module, name in names:
        if module != package and not module.startswith(f"{package}."):
            continue
        inner = module.removeprefix(package).removeprefix(".")
        whole = f"{inner}.{name}".removeprefix(".")
        yield (whole, "") if name and whole in known else (inner, name)


def part_of(module: str, package: str) -> str:
    """Return the part that a module belongs to; the package's own ``__init__`` is a part with the package's name."""
    return module.partition(".")[0] or package


def floors(package: str) -> dict[str, int]:
    """Return each part's floor, counted from the ground."""
    _, parts = PACKAGES[package]
    return {part: len(parts) - number for number, floor in enumerate(parts) for part in floor}


def picture() -> str:
    """Return the picture: a graph of both packages' parts, in the language of Mermaid."""
    lines = ["```mermaid", "flowchart TB"]
    for package, (_, parts) in PACKAGES.items():
        lines.append(f"  subgraph {package}")
        for number, floor in enumerate(parts):
            lines.append(f"    subgraph {package}_{number}[ ]")
            lines += [f'      {package}_{part}["{part}"]' for part in floor]
            lines.append("    end")
        lines.append("  end")
        found = {(part_of(one.importer, package), part_of(one.imported, package)) for one in imports(package)}
        lines += [f"  {package}_{above} --> {package}_{below}" for above, below in sorted(_direct(found))]
    return "\n".join([*lines, "```", ""])


def _direct(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows that no way over other parts replaces, so that the picture can be read."""
    arrows = {(above, below) for above, below in found if above != below}
    reach: dict[str, set[str]] = {}

    def below(part: str) -> set[str]:
        if part not in reach:
            reach[part] = set()
            direct = {to for start, to in arrows if start == part}
            reach[part] = direct.union(*map(below, direct))
        return reach[part]

    return {
        (start, to)
        for start, to in arrows
        if not any(to in below(other) for begin, other in arrows if begin == start and other != to)
    }


def with_picture(page: str) -> str:
    """Return the page with the picture of today's imports."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{picture()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text()))
