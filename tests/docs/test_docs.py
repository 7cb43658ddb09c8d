"""What README and docs show is run: every page's blocks, in order, in one directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.doc_pages import (
    DATA,
    PAGES,
    PICTURES,
    ROOT,
    RUN,
    Block,
    agrees,
    blocks_of,
    compare,
    is_run_elsewhere,
    is_story,
    kinds_elsewhere,
    outputs,
    printed_by,
)
from support.r.rprocess import command as r_command
from support.servers import Server

from sharedvol.lint import Options, lint

LIMIT = 60.0
SHOP = re.compile(r"mysql://app@db/\w+")  # in examples: the server of the tests stands for it
OUTSIDE = {
    "pip install": "from the public index, or of this directory, which `make test` has done",
    "pip download": "tests/containers/conftest.py downloads the same wheels",
    "python -m sharedvol.integrations.uvicorn ": "tests/integrations starts a service so",
    "sharedvol doctor /shared/spool": "tests/doctor/test_doctor_command.py",
    "cd docs/examples/compose": "docs/compose.md: tests/containers does the same with a copy of the directory",
    "chmod 700 secrets": "likewise",
    "curl -X PUT": "likewise, and the tutorial asks with curl",
    "export COMPOSE_FILE=": "likewise",
    "docker compose -f compose.yaml ": "tests/containers/test_compose_replicas.py and test_compose_r.py",
    "API_IMAGE=jobs-api:2 ./roll api": "tests/containers/test_compose_replicas.py",
    "docker compose up -d --no-recreate --scale ": "the tutorial, and test_compose_replicas.py",
    "docker compose up -d --no-deps --no-recreate --": "the tutorial runs the same with other numbers",
    "docker compose run --rm -T prepare ": "writes what the example's owner brings along",
    "docker compose exec sidecar ": "the tutorial runs the same with -T",
    "docker compose logs ": "the engine's own, without an end",
    "docker compose exec --index": "two doctors: tests/doctor/test_doctor_peer.py",
    "uvicorn ": "tests/integrations and tests/traefik start services so",
    "docker build": "tests/containers/conftest.py builds the image",
    "docker run": "tests/containers/test_container_image.py runs it so",
}
"""Commands in indented blocks that this does not run as they stand, and why that is not needed."""
TYPED = re.compile(r"^(?:\$ +)?(?:sharedvol|sharedvol-sidecar|make|pip) .*", re.MULTILINE)
"""What is to be typed, and so is no output."""
RUNNABLE = [page for page in PAGES if not is_run_elsewhere(page)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What the pages but the tutorial and the how-to guides take for granted."""
    for name in ("results", "logs", "locks", "migrations"):
        (tmp_path / name).mkdir()
    (tmp_path / "migrations" / "001_orders.sql").write_text("CREATE TABLE orders (id INT PRIMARY KEY);\n")
    return tmp_path


class Page:
    """Runs the blocks of a page.

    Args:
        place: the directory to be in.
        url: gives the database that stands for those of the examples, when a page needs one.
    """

    def __init__(self, place: Path, url: Callable[[], str]) -> None:
        self._place, self._url = place, url
        self.ran = 0

    def run(self, block: Block, shown: str | None) -> None:
        """Run it, or keep it as the file that it is."""
        if block.file is not None:
            self._keep(block, block.file)
        elif block.kind == "python":
            compare(block, shown, self._call(block, [sys.executable, "-c", self._local(block.text)]))
        elif block.kind == "sh" and not block.wants_containers:
            compare(block, shown, self._call(block, ["sh", "-eu", "-c", self._local(block.text)]))
        for command in block.commands:
            if command.startswith(RUN) and not command.startswith(tuple(OUTSIDE)):
                self._call(block, ["sh", "-c", self._local(command)])

    def _keep(self, block: Block, name: str) -> None:
        path = self._place / name
        assert path.resolve().is_relative_to(self._place), f"{block} names a file elsewhere: {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)

    def _local(self, text: str) -> str:
        text = SHOP.sub(lambda _: self._url(), text) if SHOP.search(text) else text
        text = re.sub(r"(?<![\w/])docs/examples/", f"{ROOT}/docs/examples/", text)
        return re.sub(r"^make ", f"make -C {ROOT} -n ", text, flags=re.MULTILINE)

    def _call(self, block: Block, command: list[str]) -> str:
        self.ran += 1
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": ""}
        # What was compiled for one command is there for the next, wherever bytecode is not written otherwise.
        environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self._place.parent / "bytecode")}
        return printed_by(block, command, self._place, environment, LIMIT)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in RUNNABLE])
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    blocks = blocks_of(page)
    made: list[str] = []

    def url() -> str:
        if not made:
            server: Server = request.getfixturevalue("_server_of")("mariadb")
            made.append(server.url(server.create_database()))
        return made[0]

    if any(block.kind == "sh" and "Rscript" in block.text for block in blocks):
        r_command()  # skips where there is no R
        shutil.copy(ROOT / "docs" / "r" / "sharedvol.R", tmp_path)
    runner = Page(tmp_path if is_story(page) else request.getfixturevalue("place"), url)
    for block, shown in outputs(blocks):
        runner.run(block, shown)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_a_page_shows_nothing_that_nobody_runs(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    assert _too_many(page, blocks) == []
    compared = {shown for _, shown in outputs(blocks)}
    for block in blocks:
        assert block.text in compared or _nobody_runs(block) == []
        if block.kind in READERS:
            read = READERS[block.kind](block.text)
            if block.kind == "yaml" and "services" in read:
                (tmp_path / "compose.yaml").write_text(block.text)
                assert lint([str(tmp_path / "compose.yaml")], Options(reader="files")).findings is not None


def _nobody_runs(block: Block) -> list[str]:
    """What of a block no test runs."""
    if block.kind not in ("python", "sh", "console", "indented", *DATA, *PICTURES):
        return [f"{block}: nothing runs {block.kind!r}"]
    if block.kind in PICTURES:
        return [f"{block}: nothing runs what is shown as output: {one}" for one in TYPED.findall(block.text)]
    is_program = block.kind in ("r", "sql") or (block.kind == "python" and block.file is not None)
    if is_program and not _is_used(block) and not is_run_elsewhere(block.page):
        return [f"{block}: nothing runs the file that it is"]
    return [f"{block}: nothing runs: {one}" for one in block.commands if not one.startswith((*RUN, *OUTSIDE))]


def _too_many(page: Path, blocks: list[Block]) -> list[str]:
    """The kinds of blocks of which a page has more than the tests elsewhere run."""
    kinds = kinds_elsewhere(page)
    counts = Counter(block.kind for block in blocks)
    return [] if kinds is None else [kind for kind, count in counts.items() if count > kinds.get(kind, 0)]


def test_what_nobody_runs_is_found() -> None:
    page = ROOT / "docs" / "tutorial.md"
    for kind, text in (
        ("bash", "ls\n"),
        ("indented", "docker push x\n"),
        ("indented", "sharedvl whoami\n"),
        ("indented", "TOKEN=1 sharedvol whoami\n"),
        ("console", "$ rm -rf x\n"),
        ("text", "1\nsharedvol whoami\n"),
        ("r", "1\n"),
        ("sql", "SELECT 1;\n"),
        ("python", "# never_named.py\n"),
    ):
        assert len(_nobody_runs(Block(page, 10**6, kind, text))) == 1, text
    rule = ROOT / "docs" / "lint" / "SV001.md"
    more = [Block(rule, line, kind, "1\n") for line, kind in enumerate(("python", "yaml", "yaml", "yaml"))]
    assert _too_many(rule, more) == ["python", "yaml"]


def _is_used(block: Block) -> bool:
    """Whether a later command of the page names the file, or its directory."""
    named = (
        block.file or "",
        (block.file or "").removesuffix(".py"),
        *(f"{parent}" for parent in Path(block.file or "").parents if f"{parent}" != "."),
    )
    later = [
        other.text for other in blocks_of(block.page) if other.line > block.line and other.kind in ("sh", "python")
    ]
    return any(name and name in text for name in named for text in later)


def test_there_are_examples_to_run() -> None:
    kinds = [block.kind for page in PAGES for block in blocks_of(page)]
    assert kinds.count("python") >= 20
    assert kinds.count("sh") >= 20
    assert sum(len(block.commands) for page in PAGES for block in blocks_of(page)) >= 20


def test_what_is_shown_behind_a_command_is_its_output(tmp_path: Path) -> None:
    def shown(text: str) -> list[str | None]:
        page = tmp_path / "page.md"
        page.write_text(text)
        return [output for _, output in outputs(blocks_of(page))]

    assert shown("```python\n1\n```\n\n```text\n2\n```\n") == ["2\n"]
    assert shown("```python\n1\n```\n\nA picture:\n\n```text\n2\n```\n") == [None]
    assert shown("```sh\n1\n```\n\nwhich prints\n\n```text\n2\n```\n") == ["2\n"]


def test_a_page_that_shows_what_fails_fails(tmp_path: Path) -> None:
    runner = Page(tmp_path, str)
    for kind, text, shown in FAILING:
        with pytest.raises(AssertionError):
            runner.run(Block(ROOT / "README.md", 1, kind, text), shown)
    with pytest.raises(AssertionError):
        runner.run(Block(ROOT / "README.md", 1, "indented", "sharedvol nonsense\n"), None)
    assert runner.ran == 5


def test_output_agrees_where_only_what_may_differ_differs() -> None:
    assert agrees("one …\n…\nlast", "one  1\n2\n3\nlast\n")
    assert agrees("a … c", "a b c")
    assert agrees("…\nlast", "last")
    assert not agrees("one", "one\ntwo")
    assert not agrees("a … c", "a b d")
    assert not agrees("first\n…", "second\n")


FAILING = (("python", "1/0", None), ("python", "print(1)", "2\n"), ("sh", "false", None), ("sh", "echo a", "b\n"))
READERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
