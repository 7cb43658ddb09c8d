"""The bench runs: a small version of each group, whose figures mean nothing. And what its report says is so."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the bench is no part of what is installed

from bench import __main__ as program  # noqa: E402
from bench import report, results  # noqa: E402
from bench.figures import at_least, at_most, note, reading  # noqa: E402
from bench.groups import GROUPS  # noqa: E402
from bench.results import Group  # noqa: E402
from bench.tables import SECTIONS  # noqa: E402

DOCS = ROOT / "docs"


def measured(*arguments: str, code: tuple[int, ...] = (0, 1)) -> tuple[list[dict[str, object]], str]:
    """What a run printed, by lines, and what it told people; 1 is a missed target, as it may be on this scale."""
    result = subprocess.run(
        [sys.executable, "-m", "bench", "--scale", "0.02", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode in code, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def run_group(group: str, place: Path, scale: str = "0.02") -> list[dict[str, object]]:
    return measured(group, "--scale", scale, "--directory", str(place), "--output", str(place), "--no-report")[0]


@pytest.mark.parametrize(
    ("group", "figures", "readings"),
    [
        ("uncontended", 2, 7),
        ("fenced", 2, 0),
        ("contended", 6, 6 * 5),
        ("crowds", 0, 6 * 5),
        ("beside", 2, 0),
        ("lost", 1, 5 * 3 + 5 * 2),
        ("idle", 2, 0),
        ("backlog", 3, 0),
        ("latency", 4, 0),
        ("following", 3, 0),
        ("http", 2, 0),
        ("cache", 5, 2 * 5 + 3 * 2),
        ("splitter", 2, 0),
        ("startup", 1, 5 * 5),
        ("logs", 2, 2 + 3 * 2),
    ],
)
def test_each_group_gives_its_figures_and_readings(group: str, figures: int, readings: int, tmp_path: Path) -> None:
    lines = run_group(group, tmp_path)
    assert [line["kind"] for line in lines].count("figure") == figures
    assert [line["kind"] for line in lines].count("reading") == readings


def test_the_moving_group_moves_every_file(tmp_path: Path) -> None:
    lines = run_group("moving", tmp_path)
    assert any("moving 2,000 files" in str(line.get("name")) for line in lines)
    assert [line["kind"] for line in lines].count("reading") == 4 + (shutil.which("rsync") is not None)


def test_the_replicas_group_starts_them_on_every_server(tmp_path: Path) -> None:
    figures = run_group("replicas", tmp_path, scale="0.1")
    trips = [figure for figure in figures if "round trips" in str(figure["name"])]
    assert trips
    assert all(figure["reached"] for figure in trips)  # counted, not timed


def synthetic(scale: float = 1.0) -> results.Results:
    """Figures of each kind in each group, and a reading for each cell of each table."""
    readings = [
        reading(table, who, at, (1.5 * number, 12.0, 1234.5), "Table 't' | twice" if words.notes else "")
        for section in SECTIONS
        for table, words in section.tables.items()
        for number, at in enumerate(words.columns)
        for who in ("sharedvol", "peer")
    ]
    figures = [at_least("a rate", 2.0, 1.0, "2/s", (1.9, 2.0, 2.1)), at_most("cost", 0.9, 1.0, ""), note("x", 1, "y")]
    group = Group.of(
        figures, date="2026-01-31", seconds=61, scale=scale, machine={"CPU": "a good one", "memory": "1 GiB"}
    )
    made = dict.fromkeys(GROUPS, group)
    made["crowds"] = dataclasses.replace(group, readings=tuple(readings))
    return made


def tables(text: str) -> Iterator[list[str]]:
    """The lines of each Markdown table."""
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            yield lines


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_the_report_shows_every_table_and_plots_that_parse(tmp_path: Path) -> None:
    page = report.write(synthetic(), GROUPS, tmp_path)
    text = page.read_text()
    shown = list(tables(text))
    expected = sum(len(section.tables) for section in SECTIONS)
    assert len(shown) == expected + 4  # targets, without a target, machine, groups
    for lines in shown:
        assert set(lines[1]) <= set("| -")
        assert {cells(line) for line in lines} == {cells(lines[0])}
    plots = re.findall(r"^!\[.+\]\((.+\.svg)\)$", text, re.MULTILINE)
    assert sorted(plots) == sorted(f"benchmarks/{plot}.svg" for section in SECTIONS for plot in section.plots)
    for plot in plots:
        assert ElementTree.parse(tmp_path / plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "MISSED" not in text
    assert "without meaning" not in text


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    results.save(kept, synthetic())
    written = []
    for place in (tmp_path / "a", tmp_path / "b"):
        page = report.write(results.load(kept), GROUPS, place)
        written.append([page.read_bytes(), *(path.read_bytes() for path in sorted(place.glob("benchmarks/*")))])
    assert written[0] == written[1]


def test_a_missed_target_is_said_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: dataclasses.replace(group, readings=()) for name, group in synthetic().items()}
    missed = at_least("increments kept", 0.5, 1.0, "half of them")
    known["lost"] = dataclasses.replace(known["lost"], figures=(missed,))
    results.save(tmp_path / "benchmarks" / "results.json", known)
    monkeypatch.setattr(sys, "argv", ["bench", "--render", "--output", str(tmp_path)])
    assert program.main() == 1
    text = (tmp_path / "benchmarks.md").read_text()
    assert re.search(r"^\| `lost` \| increments kept \| 0.5 \|.*\| \*\*MISSED\*\* \|", text, re.MULTILINE)
    assert f"{2 * (len(GROUPS) - 1)} of {2 * (len(GROUPS) - 1) + 1} reached, 1 missed" in text


def test_a_group_that_fails_keeps_its_old_figures_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(directory: Path, scale: float) -> Iterator[results.Figure]:
        yield note("half of it", 1, "")
        raise RuntimeError("no disk")

    kept = tmp_path / "benchmarks" / "results.json"
    results.save(kept, {"lost": synthetic()["lost"]})
    monkeypatch.setattr(program, "GROUPS", {"lost": broken})
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")  # which the bench removes
    monkeypatch.setattr(sys, "argv", ["bench", "--output", str(tmp_path), "--directory", str(tmp_path)])
    assert program.main() == 2
    assert results.load(kept) == {"lost": synthetic()["lost"]}
    assert (tmp_path / "benchmarks.md").exists()


def test_a_partial_run_changes_its_rows_only_and_names_the_machine_but_no_place(tmp_path: Path) -> None:
    kept = tmp_path / "benchmarks" / "results.json"
    before = {name: group for name, group in synthetic().items() if name in ("lost", "uncontended")}
    results.save(kept, before)
    measured("uncontended", "--directory", str(tmp_path), "--output", str(tmp_path))
    after = results.load(kept)
    assert after["lost"] == before["lost"]
    assert after["uncontended"] != before["uncontended"]
    text = (tmp_path / "benchmarks.md").read_text()
    assert "**Not at full size, and without meaning: `uncontended`.**" in text
    assert "Not measured: `fenced`" in text
    for fact in ("CPU", "memory", "kernel", "file system", "Python", "MariaDB", "filelock", "yoyo-migrations"):
        assert re.search(rf"^\| {fact} \| \S", text, re.MULTILINE), fact
    assert names_of_a_place(text) == []


def names_of_a_place(text: str) -> list[str]:
    """Host names, and paths that are of one machine."""
    hosts = [name for name in (socket.gethostname(), os.uname().nodename) if len(name) > 3 and name in text]
    return hosts + re.findall(r"(?<![\w./])/[\w.-]+/[\w.-]+", text)


def test_the_committed_report_is_what_its_results_say() -> None:
    known = report.order(results.load(DOCS / "benchmarks" / "results.json"), GROUPS)
    drawn = [name for section in SECTIONS for name in section.plots]
    text = (DOCS / "benchmarks.md").read_text()
    assert text == report.render(known, GROUPS, drawn), "write it again with python -m bench --render"
    assert list(known) == list(GROUPS)
    assert all(group.scale == 1 for group in known.values())
    assert {path.stem for path in (DOCS / "benchmarks").glob("*.svg")} == set(drawn)
    assert names_of_a_place(text) == []
