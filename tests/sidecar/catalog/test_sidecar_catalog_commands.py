"""``ls``, ``verify`` and ``rebuild``: they say what is so, and touch no file, whatever goes on beside them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.processes import LIMIT, reaped
from support.sidecar.catalogued import HOSTILE, Collected, row

from sharedvol_sidecar.catalog import rebuild as rebuilding
from sharedvol_sidecar.catalog import verify as verifying
from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.catalog.files import digest
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.destination.template import DEFAULT, Template
from sharedvol_sidecar.destination.template_inverse import TemplateInverse
from sharedvol_sidecar.errors import ConfigError

DEPTH = 1500
PATH = "results/2026-01-31/c1/job.json"


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    return Collected(tmp_path / "collected")


def run(command: str, collected: Collected, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [command, "--to", str(collected.root), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def problems(collected: Collected, *arguments: str) -> dict[str, str]:
    """What ``verify`` says, by path; and its exit code must tell the same."""
    code, out, _ = run("verify", collected, "--json", *arguments)
    *findings, last = records(out)
    assert code == (1 if findings else 0)
    assert sum(last["summary"][name] for name in ("changed", "missing", "uncatalogued", "unreadable")) == len(findings)
    return {finding["path"]: finding["problem"] for finding in findings}


def contents(collected: Collected) -> dict[str, tuple[bytes, int]]:
    """Every file, its contents and time: what no command may change."""
    found = {}
    for path in collected.names():
        full = collected.root / path
        if full.is_file() and not full.is_symlink():
            found[path] = (full.read_bytes(), full.stat().st_mtime_ns)
    return found


def test_ls_lists_what_passes_in_lines_that_no_name_can_break(collected: Collected) -> None:
    collected.catalog.add([row(os.fsdecode(raw), container="c1\x1b", collected_at=n) for n, raw in enumerate(HOSTILE)])
    collected.catalog.add([row("logs/x", kind="logs", collected_at=time.time_ns())])
    code, out, _ = run("ls", collected)
    assert code == 0 and len(out.splitlines()) == len(HOSTILE) + 1 and out.replace("\n", "").isprintable()
    code, out, _ = run("ls", collected, "--kind", "logs", "--since", "2h")
    assert code == 0 and out.split()[1:] == ["1", "B", "logs", "c1", "logs/x"]
    assert run("ls", collected, "--until", "1970-01-02", "--name", "100%")[1].count("\n") == 1
    assert run("ls", collected, "--container", "c1\x1b", "--limit", "3")[1].count("\n") == 3


def test_ls_json_has_every_field(collected: Collected) -> None:
    collected.catalog.add(
        [row("results/\xff", collected_at=1_700_000_000 * 10**9 + 5, encoding="gzip", original_size=7)]
    )
    assert records(run("ls", collected, "--json")[1]) == [
        {
            "path": "results/\xff",
            "kind": "results",
            "container": "c1",
            "original": "c1/results/\xff",
            "size": 1,
            "sha256": "00" * 32,
            "mtime_ns": 2,
            "collected_at": "2023-11-14T22:13:20Z",
            "collected_at_ns": 1_700_000_000 * 10**9 + 5,
            "encoding": "gzip",
            "original_size": 7,
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--since", "yesterday"], 2, "--since 'yesterday' is not a time"),
        (["--catalog", "nonsense"], 2, "URL is none"),
        (["--catalog", "sqlite:////nowhere/at/all.db"], 1, "no catalog"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(collected: Collected, arguments: list[str], code: int, words: str) -> None:
    for command in ("ls", "verify"):
        found, out, err = run(command, collected, *arguments)
        assert (found, out) == (code, "")
        assert err.startswith("sharedvol-sidecar: ") and words in err and err.count("\n") == 1


def test_a_private_directory_that_others_may_write_is_not_believed(collected: Collected) -> None:
    (collected.root / ".sharedvol").chmod(0o777)
    for command in ("ls", "verify", "rebuild"):
        code, _, err = run(command, collected)
        assert code == 2 and "mode 777" in err


def test_an_empty_mount_point_is_not_taken_for_the_destination(collected: Collected, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    Catalog.open(elsewhere, collected.root).add([row()])
    shutil.rmtree(collected.root / ".sharedvol")
    for command in ("verify", "rebuild"):
        code, _, err = run(command, collected, "--catalog", elsewhere)
        assert code == 2 and "mount its volume" in err
    assert Catalog.open(elsewhere, collected.root).count() == 1


def test_verify_is_content_with_what_is_as_it_was(collected: Collected) -> None:
    collected.add(PATH)
    collected.add("results/plain", sha256=None)
    collected.file("results/app.log.live")
    collected.file(".hidden/file")
    code, out, _ = run("verify", collected)
    assert code == 0
    assert "compared 2 files" in out and "1 by size alone" in out and "all is as it was collected" in out


def test_verify_finds_each_sort_of_damage(collected: Collected) -> None:
    for name in ("flipped", "shorter", "gone", "link", "fifo", "by size"):
        made = collected.add(f"results/{name}", sha256=None) if name == "by size" else collected.add(f"results/{name}")
        path = collected.root / made.path
        if name == "flipped":
            path.write_text("cOntent")
            os.utime(path, ns=(0, made.mtime_ns))
        elif name == "shorter":
            os.truncate(path, 3)
        elif name == "by size":
            path.write_text("content!")
        else:
            path.unlink()
            if name == "link":
                path.symlink_to("flipped")
            elif name == "fifo":
                os.mkfifo(path)
    collected.file("results/unknown")
    collected.catalog.add([row("../outside")])
    before = contents(collected)
    assert problems(collected) == {
        "results/flipped": "changed",
        "results/shorter": "changed",
        "results/by size": "changed",
        "results/link": "changed",
        "results/fifo": "changed",
        "results/gone": "missing",
        "results/unknown": "uncatalogued",
        "../outside": "unreadable",
    }
    assert contents(collected) == before
    assert problems(collected, "--name", "gone") == {"results/gone": "missing"}


def test_verify_tells_a_file_whose_row_is_about_to_come_from_one_without(collected: Collected) -> None:
    collected.file("results/moving")
    claim = collected.root / ".sharedvol" / "claim"
    os.link(collected.root / "results/moving", claim)
    assert problems(collected) == {}
    claim.unlink()
    assert problems(collected) == {"results/moving": "uncatalogued"}


@pytest.mark.parametrize("change", ["pruned", "collected again"])
def test_verify_asks_again_about_what_changed_meanwhile(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    made = collected.add("results/a")
    real = verifying.Verification._compare

    def compare(self: Any, found: Any) -> Any:
        if found == made:
            (collected.root / made.path).unlink()
            if change == "pruned":
                collected.catalog.remove([made.path])
            else:
                collected.add(made.path, "another")
        return real(self, found)

    monkeypatch.setattr(verifying.Verification, "_compare", compare)
    assert problems(collected) == {}


def test_rebuild_makes_a_lost_catalog_anew(collected: Collected) -> None:
    collected.file(PATH)
    collected.file("logs/2026-01-31/c2/deep/er/app.log", "")
    collected.file("elsewhere")
    (collected.root / "results" / "link").symlink_to("nothing")
    collected.file("logs/2026-01-31/c2/app.log.live")
    collected.catalog.close()
    shutil.rmtree(collected.root / ".sharedvol")
    before = contents(collected)
    code, out, _ = run("rebuild", collected)
    assert code == 0 and "3 added" in out
    found = {one.path: (one.kind, one.container, one.original) for one in collected.catalog.rows()}
    assert found == {
        PATH: ("results", "c1", ""),
        "logs/2026-01-31/c2/deep/er/app.log": ("logs", "c2", ""),
        "elsewhere": ("", "", ""),
    }
    assert problems(collected) == {}
    assert contents(collected) == before


def test_rebuild_keeps_what_rows_know_and_mends_the_rest(collected: Collected) -> None:
    kept = collected.add(PATH)
    lacking = collected.add("results/lacking", sha256=None)
    collected.add("results/changed", original="of the former")
    (collected.root / "results/changed").write_text("other")
    collected.add("results/gone")
    (collected.root / "results/gone").unlink()
    collected.catalog.add([row("../outside")])
    code, out, _ = run("rebuild", collected, "--json")
    *changes, last = records(out)
    assert code == 0 and {one["path"]: one["problem"] for one in changes} == {
        "results/lacking": "completed",
        "results/changed": "replaced",
        "results/gone": "dropped",
        "../outside": "dropped",
    }
    assert last["summary"]["kept"] == 1
    assert collected.catalog.get(PATH) == kept
    completed = collected.catalog.get("results/lacking")
    assert completed is not None
    assert (completed.original, completed.collected_at) == (lacking.original, lacking.collected_at)
    assert completed.sha256 == kept.sha256
    changed = collected.catalog.get("results/changed")
    assert changed is not None and changed.original == ""
    assert problems(collected) == {}
    assert records(run("rebuild", collected, "--json")[1])[:-1] == []


def at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, happens: Callable[[], object], *, after: bool) -> None:
    """Let something happen once, before or after a step."""
    real, left = getattr(owner, name), [happens]

    def step(*arguments: Any, **options: Any) -> Any:
        if left and not after:
            left.pop()()
        result = real(*arguments, **options)
        if left:
            left.pop()()
        return result

    monkeypatch.setattr(owner, name, step)


STEPS = [
    pytest.param(rebuilding, "digest", False, id="before-the-file-is-read"),
    pytest.param(rebuilding, "digest", True, id="after-the-file-was-read"),
    pytest.param(Catalog, "known", False, id="before-the-catalog-is-asked"),
    pytest.param(Catalog, "known", True, id="after-the-catalog-was-asked"),
    pytest.param(Catalog, "amend", False, id="before-the-row-is-written"),
    pytest.param(Catalog, "amend", True, id="after-the-row-was-written"),
    pytest.param(rebuilding.Rebuild, "drop_rows", False, id="before-rows-are-dropped"),
    pytest.param(rebuilding.Rebuild, "_is_missing", True, id="after-a-row-was-looked-at"),
    pytest.param(Catalog, "forget", False, id="before-a-row-is-dropped"),
]


@pytest.mark.parametrize(("owner", "name", "after"), STEPS)
@pytest.mark.parametrize("known", ["no row", "a row of another file", "a row of a file that is gone"])
@pytest.mark.parametrize("meanwhile", ["collected", "collected another", "taken back", "pruned and collected"])
def test_rebuild_beside_a_sidecar_is_true_in_the_end(
    collected: Collected,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
    known: str,
    meanwhile: str,
) -> None:
    """The sidecar links a file and adds its row while the rebuilding is at any of its steps."""
    collected.add("results/first")
    collected.add("results/gone")
    (collected.root / "results/gone").unlink()
    if known == "no row":
        collected.file("results/a", "linked, and its row is to come")
    else:
        collected.add("results/a", "former")
        if known == "a row of another file":
            (collected.root / "results/a").write_text("linked, and its row is to come")
        else:
            (collected.root / "results/a").unlink()
    sidecar = Catalog.open("", collected.root)

    def happens() -> None:
        path = collected.root / "results/a"
        if meanwhile == "taken back":
            path.unlink(missing_ok=True)
            sidecar.remove(["results/a"])
            return
        if meanwhile == "pruned and collected":
            path.unlink(missing_ok=True)
            sidecar.remove(["results/a"])
        if meanwhile != "collected" or not path.exists():
            path.unlink(missing_ok=True)
            path.write_text("another")
        made = collected.file("results/a", path.read_text())
        made.original, made.collected_at = "of the sidecar", time.time_ns()
        sidecar.add([made])

    at(monkeypatch, owner, name, happens, after=after)
    assert run("rebuild", collected)[0] == 0
    monkeypatch.undo()
    assert problems(collected) == {}
    found = sidecar.get("results/a")
    if meanwhile == "taken back":
        assert found is None
    else:
        assert found is not None and found.original == "of the sidecar"


def test_rebuild_leaves_the_rows_of_what_cannot_be_read(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    made = collected.add("results/a")

    def failing(fd: int, progress: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(rebuilding, "digest", failing)
    code, out, _ = run("rebuild", collected)
    assert code == 1 and "1 unreadable" in out
    assert collected.catalog.get("results/a") == made


def test_a_link_in_the_place_of_a_directory_is_told_and_its_rows_stay(collected: Collected, tmp_path: Path) -> None:
    collected.add("results/day/a")
    collected.add("results/file/a")
    (collected.root / "results/day").rename(tmp_path / "day")
    (collected.root / "results/day").symlink_to(tmp_path / "day")
    shutil.rmtree(collected.root / "results/file")
    (collected.root / "results/file").write_text("")
    assert problems(collected) == {
        "results/day/a": "unreadable",
        "results/file/a": "missing",
        "results/file": "uncatalogued",
    }
    assert run("rebuild", collected)[0] == 1
    assert collected.paths() == {"results/day/a", "results/file"}


@pytest.fixture
def deep() -> Iterator[Collected]:
    """A destination deeper than Python recurses; made and removed without pytest, whose cleaning recurses."""
    top = Path(tempfile.mkdtemp(prefix="sharedvol-test-"))
    try:
        collected = Collected(top / "collected")
        here = os.open(collected.root, os.O_RDONLY)
        for _ in range(DEPTH):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        os.close(here)
        yield collected
    finally:
        subprocess.run(["rm", "-rf", top], check=True, timeout=LIMIT)


def test_a_tree_deeper_than_python_recurses_is_walked(deep: Collected) -> None:
    assert run("rebuild", deep)[0] == 0
    assert deep.paths() == {"d/" * DEPTH + "file"}
    assert problems(deep) == {}


def test_a_file_that_is_swapped_for_a_fifo_is_not_waited_for(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected.add("results/a")
    real = verifying.open_file

    def swap(found: Any) -> int:
        path = collected.root / found.path
        path.unlink()
        os.mkfifo(path)
        return real(found)

    monkeypatch.setattr(verifying, "open_file", swap)
    assert problems(collected) == {"results/a": "missing"}


TEMPLATES = [
    (DEFAULT, "results/2026-01-31/c1/deep/job.json", ("results", "c1")),
    (DEFAULT, "results/31/c1/job.json", ("", "")),
    ("{container}/{kind}/{name}", "c1/logs/a/b", ("logs", "c1")),
    ("all/{year}/{month}/{kind}-{container}/{base}", "all/2026/01/logs-c1/x", ("logs", "c1")),
    ("all/{year}/{month}/{kind}-{container}/{base}", "all/2026/01/logs-c-1/x", ("", "")),
    ("{container}_{date}/{container}/{base}", "c_1_2026-01-31/c_1/x", ("", "c_1")),
    ("{kind}/{name}", "logs/a/b", ("logs", "")),
    ("{name}/{container}", "a/b/c1", ("", "")),
    ("{kind}/{name}/{container}/{base}", "logs/a/b/c1/b", ("logs", "c1")),
    ("{kind}.{{x}}/{container}_{base}", "logs.{x}/c1_b", ("logs", "")),
]


@pytest.mark.parametrize(("template", "path", "told"), TEMPLATES)
def test_a_template_is_read_backwards_only_where_there_is_one_reading(
    template: str, path: str, told: tuple[str, str]
) -> None:
    assert TemplateInverse(Template(template)).read(path) == told


def test_a_template_that_is_none_is_refused(collected: Collected) -> None:
    code, _, err = run("rebuild", collected, "--template", "{nothing}")
    assert code == 2 and "unknown field" in err
    with pytest.raises(ConfigError):
        Template("{nothing}")


@pytest.mark.parametrize("command", ["verify_command", "rebuild_command"])
def test_a_terminal_sees_how_far_it_is(collected: Collected, command: str) -> None:
    collected.add(PATH, "x" * 3_000_000)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    at_once = "from sharedvol.cli.terminal import Progress; Progress.__init__.__kwdefaults__['delay'] = 0.0"
    code = f"{at_once}; from sharedvol_sidecar.commands.catalog import {command}; {command}()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--to", collected.root], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    with reaped(process):
        out, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0 and "\r" not in out and "MiB of" not in out
        assert b"\r\x1b[Kread 1.0 MiB" in os.read(ours, 65_536)
    os.close(ours)


def test_bytes_are_counted_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    seen: list[int] = []
    fd = os.open(path, os.O_RDONLY)
    digest(fd, seen.append)
    os.close(fd)
    assert sum(seen) == 3_000_000 and len(seen) > 1
