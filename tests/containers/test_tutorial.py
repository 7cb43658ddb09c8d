"""What the tutorial and the how-to guides do with containers, done: each command, in order, and what it prints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support.containers.compose_project import Project
from support.containers.container_engine import Engine
from support.doc_pages import PAGES, ROOT, Block, blocks_of, compare, is_run_elsewhere, outputs, printed_by

LIMIT = 100
"""Seconds for the commands of a block."""
WITH_CONTAINERS = [
    page for page in PAGES if not is_run_elsewhere(page) and any(block.wants_containers for block in blocks_of(page))
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in WITH_CONTAINERS])
def test_the_commands_of_a_page_do_what_it_says(
    page: Path, engine: Engine, compose_images: dict[str, str], tmp_path: Path
) -> None:
    # A copy: the settings and the password that a page makes are not left in the checkout.
    directory = tmp_path / "compose"
    shutil.copytree(ROOT / "docs" / "examples" / "compose", directory)
    with Project(engine, directory, name="jobs", environment=compose_images) as project:
        for block, shown in outputs(blocks_of(page)):
            if block.kind == "sh" and block.wants_containers:
                compare(block, shown, _run(block, project))


def _run(block: Block, project: Project) -> str:
    """What the commands of a block print.

    Raises:
        AssertionError: they failed, or took too long: 124, as timeout(1) says.
    """
    environment = {**project.environment, "PATH": f"{Path(sys.executable).parent}:{project.environment['PATH']}"}
    command = ["timeout", "--kill-after=5", str(LIMIT), "sh", "-eu", "-c", block.text]
    return printed_by(block, command, project.directory, environment, LIMIT + 30)


def test_there_are_pages_with_containers() -> None:
    assert "tutorial.md" in {page.name for page in WITH_CONTAINERS}
