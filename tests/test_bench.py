"""The bench runs: a small version of each group, whose figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("group", "figures"),
    [
        ("uncontended", 2),
        ("fenced", 2),
        ("contended", 6),
        ("beside", 2),
        ("idle", 2),
        ("backlog", 3),
        ("latency", 4),
        ("following", 3),
        ("http", 2),
        ("cache", 5),
        ("splitter", 2),
    ],
)
def test_each_group_gives_its_figures(group: str, figures: int, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench", group, "--scale", "0.02", "--json", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode in (0, 1), result.stderr  # 1: a target was missed, as it may be on this scale
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == figures, result.stderr


def test_the_moving_group_moves_every_file(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench", "moving", "--scale", "0.02", "--json", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode in (0, 1), result.stderr
    assert "moving 2,000 files" in result.stdout


def test_the_replicas_group_starts_them_on_every_server(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench", "replicas", "--scale", "0.1", "--json", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode in (0, 1), result.stderr
    figures = [json.loads(line) for line in result.stdout.splitlines()]
    trips = [figure for figure in figures if "round trips" in figure["name"]]
    assert trips
    assert all(figure["reached"] for figure in trips)  # counted, not timed
