"""The demo ends well, and its verdict sees each kind of fault."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedvol_sidecar.demo.verdict import Verdict, judge


def test_the_demo_loses_doubles_and_overwrites_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sharedvol_sidecar", "demo", "--replicas", "2", "--seconds", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    verdict = json.loads(result.stdout)
    assert verdict["good"]
    assert len(verdict["rows"]) == 5
    assert all(row["written"] > 0 for row in verdict["rows"])


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Two results and two lines, written and collected."""
    for name in ("records", "spool", "collected"):
        (tmp_path / name).mkdir()
    records = tmp_path / "records"
    (records / "aa.title").write_text("files")
    (records / "bb.title").write_text("lines")
    entries = []
    for text in ("one", "two"):
        (tmp_path / "collected" / f"{text}.json").write_text(text)
        entries.append(f"{hashlib.sha256(text.encode()).hexdigest()} {text}.json")
    (records / "aa-c-w.files").write_text("\n".join(entries) + "\n")
    (records / "bb-c-w.lines").write_text("l1\nl2\n")
    (tmp_path / "collected" / "app.log").write_text("l1\nl2\n")
    return tmp_path


def verdict_on(volume: Path) -> Verdict:
    return judge(volume / "records", volume / "spool", volume / "collected")


def test_all_there_is_good(volume: Path) -> None:
    assert verdict_on(volume).good


def _total(verdict: Verdict, what: str) -> int:
    return sum(getattr(row, what) for row in verdict.rows)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda root: (root / "collected" / "one.json").unlink(), "lost"),
        (lambda root: (root / "collected" / "again.json").write_text("one"), "doubled"),
        (lambda root: (root / "collected" / "one.json").write_text("three"), "overwritten"),
        (lambda root: (root / "collected" / "app.log").write_text("l1\n"), "lost"),
        (lambda root: (root / "collected" / "app.log").write_text("l1\nl2\nl2\n"), "doubled"),
    ],
)
def test_each_fault_is_counted_and_spoils_the_verdict(volume: Path, fault: Callable[[Path], object], what: str) -> None:
    fault(volume)
    verdict = verdict_on(volume)
    assert _total(verdict, what) == 1
    assert not verdict.good


def test_a_half_written_file_spoils_the_verdict(volume: Path) -> None:
    (volume / "collected" / "half.json").write_text("on")
    assert verdict_on(volume).foreign == 1
    assert not verdict_on(volume).good


def test_a_file_left_in_the_spool_or_a_claim_spoils_the_verdict(volume: Path) -> None:
    claim = volume / "spool" / ".sharedvol" / "claims" / "0" / "b" / "c1" / "results"
    claim.mkdir(parents=True)
    (claim / "x.json").write_text("x")
    assert verdict_on(volume).left == 1
    assert not verdict_on(volume).good


def test_a_writer_that_wrote_nothing_proves_nothing(volume: Path) -> None:
    (volume / "records" / "cc.title").write_text("idle")
    assert not verdict_on(volume).good
