"""The documentation as a site: it is built without a warning, and has every public name."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from sphinx.util.inventory import InventoryFile
from support.doc_pages import PAGES, ROOT, blocks_of, docstring_example
from test_docs_docstrings import EXAMPLES, OTHERS

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from commands import helps

DOCS = ROOT / "docs"
PUBLIC = (
    "sharedvol",
    "sharedvol.migrations",
    "sharedvol.cache",
    "sharedvol.integrations",
    "sharedvol.doctor",
    "sharedvol.lint",
)
"""Modules whose ``__all__`` is documented."""


class Links(HTMLParser):
    """The anchors of a page, where its links lead, and what it shows as it would be typed or printed."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.shown: list[str] = []
        self._in_block = False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if identity := values.get("id"):
            self.anchors.add(identity)
        if tag == "a" and (target := values.get("href")) and not re.match(r"\w+:", target):
            self.targets.add(unquote(target))
        if tag == "pre":
            self.shown.append("")
            self._in_block = True

    def handle_endtag(self, tag: str) -> None:
        self._in_block = self._in_block and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_block:
            self.shown[-1] += data


def _build(site: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-E", "-d", f"{site}.trees"]
    done = subprocess.run(
        [*command, "-b", "html", str(DOCS), str(site)], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _is_documented(module: str, name: str, documented: set[str]) -> bool:
    """By any of its names: that of the package, or where it is defined."""
    thing = getattr(importlib.import_module(module), name)
    return f"{module}.{name}" in documented or f"{getattr(thing, '__module__', '')}.{name}" in documented


def test_the_site_is_built_without_a_warning_and_is_complete(tmp_path: Path) -> None:
    """One test, as it is built once: every page, every public name, and every link leads somewhere."""
    site = tmp_path / "site"
    _build(site)
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {name for role, names in inventory.data.items() if role.startswith("py:") for name in names}
    for module in PUBLIC:
        names = importlib.import_module(module).__all__
        assert names
        assert [name for name in names if not _is_documented(module, name, documented)] == []
    pages = {page: Links(page) for page in site.rglob("*.html")}
    for page in PAGES:
        if page.is_relative_to(DOCS):
            assert site / page.relative_to(DOCS).with_suffix(".html") in pages
    assert dead_links(pages) == []
    assert shown_beside(pages, known_blocks()) == []


def words(text: str) -> str:
    """Return a text without the blanks that a page adds or removes."""
    return " ".join(text.split())


def known_blocks() -> set[str]:
    """What tests run or compare: blocks of pages, the help of commands, examples of docstrings."""
    texts = [block.text for page in PAGES for block in blocks_of(page)]
    texts += [text for program in ("sharedvol", "sharedvol-sidecar") for _, text in helps(program)]
    texts += [docstring_example(name) for name in (*EXAMPLES, *OTHERS)]
    return {words(text) for text in texts}


def shown_beside(pages: dict[Path, Links], known: set[str]) -> list[str]:
    """What pages show in another way, such as by a directive, so that no test runs it."""
    return [f"{page.name}: {text}" for page, links in pages.items() for text in links.shown if words(text) not in known]


def dead_links(pages: dict[Path, Links]) -> list[str]:
    """The links that lead nowhere."""
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                dead.append(f"{page.name}: {target}")
    return dead


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<p id="here"><a href="#here">a</a><a href="#there">b</a><a href="page.html">c</a><a href="x.html">d</a>'
    )
    assert sorted(dead_links({page: Links(page)})) == ["page.html: #there", "page.html: x.html"]


def test_a_block_that_no_test_knows_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<pre>sharedvol <b>whoami</b>\n</pre><p>text</p><pre>1/0</pre>")
    assert shown_beside({page: Links(page)}, {"sharedvol whoami"}) == ["page.html: 1/0"]
