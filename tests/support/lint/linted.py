"""Compose files as texts, looked at by lint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from typing import Any

from sharedvol.lint import Finding, Options, Report, lint

HOST = 8 << 30  # bytes: the machine that the examples are for


def look(place: Path, text: str, *more: str, scripts: Iterable[str] = (), **options: Any) -> Report:
    """Lint the texts as compose.yaml, and further files laid over it, in ``place``."""
    files = []
    for number, one in enumerate((text, *more)):
        file = place / ("compose.yaml" if number == 0 else f"compose.{number}.yaml")
        file.write_text(dedent(one), encoding="utf-8")
        files.append(str(file))
    names = []
    for number, script in enumerate(scripts):
        (place / f"start{number}.sh").write_text(dedent(script))
        names.append(str(place / f"start{number}.sh"))
    chosen = {"reader": "files", "host_memory": HOST, **options}
    return lint(files, Options(scripts=names, **chosen))


def of(report: Report, rule: str) -> list[Finding]:
    """The findings of one rule."""
    return [one for one in report.findings if one.rule.id == rule]


def ids(report: Report) -> set[str]:
    return {one.rule.id for one in report.findings}
