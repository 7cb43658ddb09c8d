"""The house's docstrings, as Sphinx wants them: references by short names, properties that say what they are."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import napoleon
from sphinx.util.nodes import make_refnode

OTHERS = frozenset("alembic fastapi filelock flask gunicorn portalocker redis sqlalchemy starlette uvicorn".split())
"""Whose names are shown as they are: their documentation is not searched while this is built."""
INTERNAL = frozenset(
    "NamedLockRequest Config Connection Database Default _Default Found HalfAppliedPolicy Information P Server Session "
    "ServerLock Project Source T Target _Lock dict[str".split()
)
"""Types that signatures tell and nobody need make: shown as they are."""


class Docstring(napoleon.GoogleDocstring):
    """A docstring of ours. In a property's ``The name: in lower case`` what stands before the colon is no type."""

    def __init__(self, docstring: Any, config: Any = None, app: Any = None, what: str = "", *rest: Any) -> None:
        what = "method" if what in ("attribute", "data", "property") else what
        super().__init__(docstring, config, app, what, *rest)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> nodes.Node | None:
    """Where that is documented which a docstring calls `LockTimeout`, or a signature by its module."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    found = _documented(env, target)
    if found is not None:
        name, place, anchor = found
        return make_refnode(app.builder, node["refdoc"], place, anchor, content, name)
    return content if _is_elsewhere(target) else None  # None: Sphinx warns


def prepare(app: Sphinx, name: str, source: list[str]) -> None:
    """What the forge shows otherwise: links to directories, and to files outside of the site, and the list of rules."""
    place = Path(app.env.doc2path(name)).parent

    def shown(link: re.Match[str]) -> str:
        target = (place / link[2]).resolve()
        inside = target.is_relative_to(Path(app.srcdir).resolve()) and not target.is_dir()
        return link[0] if inside or not target.exists() else link[1]

    source[0] = re.sub(r"\[([^]\n]+)\]\(((?!\w+:)[^)#\s]+)\)", shown, source[0])
    if name == "lint/index":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\nSV*\n```\n"


def _documented(env: BuildEnvironment, target: str) -> tuple[str, str, str] | None:
    objects = env.domains["py"].objects  # type: ignore[attr-defined]
    ends = {target, target.rpartition(".")[2]} if target.startswith("sharedvol") else {target}
    names = [name for name in objects if not objects[name].aliased and any(name.endswith(f".{end}") for end in ends)]
    if len(names) != 1:
        return None
    return names[0], objects[names[0]].docname, objects[names[0]].node_id


def _is_elsewhere(target: str) -> bool:
    first, last = target.partition(".")[0], target.rpartition(".")[2]
    return first in sys.stdlib_module_names | OTHERS or hasattr(builtins, first) or last in INTERNAL


def setup(app: Sphinx) -> dict[str, bool]:
    napoleon.GoogleDocstring = Docstring  # type: ignore[misc]
    app.connect("missing-reference", resolve)
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
