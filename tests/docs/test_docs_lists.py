"""What README and docs list is complete, and where they lead there is something."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support.doc_pages import PAGES, ROOT, blocks_of

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from commands import helps

MARKDOWN = MarkdownIt("commonmark").enable("table")
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "tests" / "conformance" / "README.md"]
SHOWS = ("yaml", "indented", "sh", "dockerfile")
"""Kinds of blocks in which commands of ours stand."""


def test_the_paths_shown_are_those_that_are_built() -> None:
    code = "from sharedvol import *; print(container_path('results', 'job_7.json'))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOSTNAME": "3f9c0d1e2b4a"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    assert shown in (ROOT / "README.md").read_text()
    assert shown in (ROOT / "docs" / "names.md").read_text()


def test_every_setting_is_documented() -> None:
    from sharedvol_sidecar.config.settings import Settings

    text = (ROOT / "docs" / "sidecar.md").read_text()
    for field in Settings.model_fields:
        assert f"`SHAREDVOL_{field.rstrip('_').upper()}`" in text
        assert f"`--{field.rstrip('_').replace('_', '-')}`" in text


def test_every_template_field_is_documented() -> None:
    from sharedvol_sidecar.destination.template import FIELDS

    text = (ROOT / "docs" / "sidecar.md").read_text()
    assert all(f"`{field}`" in text for field in FIELDS)


def test_every_dependency_is_justified() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[\[>=]", name)[0] for name in wanted} - {"sharedvol"}
    assert {name for name in names if name.lower() not in page.lower()} == set()


def test_links_lead_to_files_and_headings_that_are_there() -> None:
    assert [link for page in LINKED for link in dead_links(page)] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n[a](#one-two-three) [b](#two) [c](none.md) ![d](none.svg) [e][1]\n\n[1]: none\n"
    )
    assert dead_links(page) == ["page.md: #two", "page.md: none.md", "page.md: none.svg", "page.md: none"]


def dead_links(page: Path) -> list[str]:
    """Links and pictures of a page that lead nowhere here; headings as the forge names them."""
    dead = []
    for part in inline(page):
        target = str(part.attrGet("href") or part.attrGet("src") or "")
        if not target or re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in headings(to)):
            dead.append(f"{page.name}: {target}")
    return dead


def headings(page: Path) -> set[str]:
    tokens = MARKDOWN.parse(page.read_text())
    titles = [after for token, after in pairwise(tokens) if token.type == "heading_open"]
    words = ["".join(part.content for part in title.children or []).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in words}


def inline(page: Path) -> Iterator[Token]:
    """The contents of the lines of a page."""
    for token in MARKDOWN.parse(page.read_text()):
        yield from token.children or []


def test_commands_and_options_in_a_sentence_exist() -> None:
    said = [part.content for page in LINKED for part in inline(page) if part.type == "code_inline"]
    said += [
        line for page in PAGES for block in blocks_of(page) if block.kind in SHOWS for line in block.text.splitlines()
    ]
    commands = [
        found for text in said for found in re.findall(r"(?<![\w/.-])sharedvol(?:-sidecar)? [a-z-][^\"'|;&]*", text)
    ]
    assert len(commands) >= 100
    assert {command: words for command in commands if (words := unknown_words(command))} == {}


def test_commands_and_options_that_do_not_exist_are_found() -> None:
    assert unknown_words("sharedvol locks a") == ["locks"]
    assert unknown_words("sharedvol lock a --timeuot 3 -- ls --all") == ["--timeuot"]
    assert unknown_words("sharedvol-sidecar ls --to=x --sinc 1") == ["--sinc"]
    assert unknown_words("sharedvol migrate run --lock-timeout 3") == []


def unknown_words(command: str) -> list[str]:
    """The subcommands and options of a command line that its help does not know."""
    first, *words = command.split()
    known = dict(helps(first))
    while words and f"{first} {words[0]}" in known:
        first = f"{first} {words.pop(0)}"
    ours = words[: words.index("--")] if "--" in words else words
    options = [found[0] for word in ours if (found := re.match(r"--[a-z-]+", word))]
    unknown = [option for option in options if not re.search(rf"{option}(?![\w-])", known[first])]
    return ([ours[0]] if ours and " " not in first and ours[0][0].islower() else []) + unknown


def test_make_has_the_targets_that_the_readme_names() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    for target in ("demo", "test", "test-containers", "torture", "soak", "lint", "bench", "docs"):
        # With a virtual environment that is taken for ready, nothing is installed; -n only prints.
        result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


def test_every_exit_code_of_migrate_is_documented() -> None:
    from sharedvol.cli import migrate as migrate_command

    page = (ROOT / "docs" / "migrations.md").read_text()
    names = [
        name for name, value in vars(migrate_command).items() if name.startswith("EXIT_") and value.__class__ is int
    ]
    codes = {getattr(migrate_command, name) for name in names}
    assert len(codes) == 7
    assert all(f"| {code} |" in page for code in codes)
    assert all(f"\n  {code} " in migrate_command.EXIT_CODES for code in codes)


def test_every_option_of_the_coordinator_is_documented_where_it_is_declared() -> None:
    import inspect

    from sharedvol import MigrationCoordinator

    options = [name for name in inspect.signature(MigrationCoordinator).parameters if name != "url_or_engine"]
    assert all(f"        {name}: " in str(MigrationCoordinator.__doc__) for name in options)


def test_every_environment_variable_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    # What `lint` names it reads in the files, not in its environment.
    modules = [path for path in (ROOT / "sharedvol").rglob("*.py") if "lint" not in path.parts]
    source = "".join(path.read_text() for path in modules)
    names = set(re.findall(r"\bSHAREDVOL_[A-Z_]*[A-Z]\b", source))
    assert len(names) >= 3
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_exit_code_is_in_the_reference() -> None:
    rows = (ROOT / "docs" / "reference" / "exit-codes.md").read_text().splitlines()
    shown = {found[1]: found[2] for row in rows if (found := re.match(r"\| (\d+) \|.*\|(.*)\|$", row))}
    for name, text in helps("sharedvol") + helps("sharedvol-sidecar"):
        command = " ".join(name.split()[:2])  # the page names `migrate run` with `migrate`
        codes = re.findall(r"^  (\d+) +\S", text.partition("exit codes:")[2], re.MULTILINE)
        codes += re.findall(r"\b(\d+) [a-z]", re.sub(r"\s+", " ", text.partition("Exit codes:")[2].partition(".")[0]))
        for code in codes:
            assert code in shown, f"{name}: {code} is not in the reference"
            assert f"`{command}`" in shown[code] or int(code) in (0, 2), f"{command} is not named next to {code}"
