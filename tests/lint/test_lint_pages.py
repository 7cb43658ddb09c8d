"""Every rule has a page, and the page's bad example breaks exactly that rule, the good one none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.lint.linted import look, of

from sharedvol.cli import main
from sharedvol.lint import Severity
from sharedvol.lint.rules import EVERY

PAGES = Path(__file__).parents[2] / "docs" / "lint"
# What a replicated service lacks is left out of the examples of other rules: they show what they are about.
LACKS = {"SV040", "SV041", "SV043", "SV044", "SV052"}
LANGUAGES = ("yaml", "sh", "text")
RULES = [pytest.param(rule, id=rule.id) for rule in EVERY]


def block(page: str, title: str, language: str) -> str:
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def section(page: str, title: str) -> str:
    return " ".join(page.partition(f"## {title}\n")[2].partition("\n## ")[0].split())


@pytest.mark.parametrize("rule", RULES)
def test_the_bad_example_breaks_exactly_this_rule_where_it_says(rule, tmp_path: Path) -> None:
    page = (PAGES / f"{rule.id}.md").read_text()
    text, script = block(page, "Bad", "yaml"), block(page, "Bad", "sh")
    report = look(tmp_path, text, scripts=[script] if script else [])
    found = of(report, rule.id)
    assert len(found) == 1, report
    assert found[0].severity is rule.severity
    assert {one.rule.id for one in report.findings} - {rule.id} <= LACKS
    lines = (script or text).splitlines()
    assert f"# {rule.id}" in lines[found[0].at.line - 1] or "# sharedvol: ignore" in lines[found[0].at.line - 1]
    assert not report.notes


@pytest.mark.parametrize("rule", RULES)
def test_the_good_example_breaks_neither_this_rule_nor_another(rule, tmp_path: Path) -> None:
    page = (PAGES / f"{rule.id}.md").read_text()
    text, script = block(page, "Good", "yaml"), block(page, "Good", "sh")
    assert text
    report = look(tmp_path, text, scripts=[script] if script else [])
    assert not of(report, rule.id)
    assert {one.rule.id for one in report.findings} <= LACKS - {rule.id}, report
    assert not report.notes


@pytest.mark.parametrize("rule", RULES)
def test_the_page_says_what_the_command_says(rule) -> None:
    page = (PAGES / f"{rule.id}.md").read_text()
    assert page.startswith(f"# {rule.id}: {rule.title}\n")
    assert f"\nSeverity: {rule.severity.name}" in page
    assert section(page, "Why") == rule.why
    assert section(page, "What to do") == rule.mend


def test_the_index_has_every_rule_and_no_other() -> None:
    index = (PAGES / "index.md").read_text()
    rows = re.findall(r"^\| \[(SV\d+)\]\((SV\d+)\.md\) \| (\w+) \| (.*) \|$", index, re.MULTILINE)
    assert rows == [(rule.id, rule.id, rule.severity.name, rule.title) for rule in EVERY]
    assert {page.stem for page in PAGES.glob("SV*.md")} == {rule.id for rule in EVERY}


def test_the_index_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = (PAGES / "index.md").read_text().partition("\n## ")[0]
    text, command, printed = (re.search(rf"```{name}\n(.*?)```", index, re.DOTALL)[1] for name in LANGUAGES)
    (tmp_path / "compose.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    program, *arguments = shlex.split(command)
    assert program == "sharedvol"
    assert main(arguments) == 1
    assert capsys.readouterr().out == printed


def test_the_comments_that_the_index_shows_accept(tmp_path: Path) -> None:
    text = block((PAGES / "index.md").read_text(), "Accepting a finding", "yaml")
    report = look(tmp_path, text)
    assert {one.rule.id for one in report.suppressed} == {"SV001", "SV041"}
    assert not of(report, "SV900")
    assert not of(report, "SV901")


def test_the_python_of_the_index_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block((PAGES / "index.md").read_text(), "In Python", "python")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    exec(code, {"print": lambda *words: told.append(" ".join(map(str, words)))})
    assert len(told) == 1
    assert told[0].startswith("compose.yaml:1:35 SV002 ")


def test_ids_are_unique_and_in_order() -> None:
    known = [rule.id for rule in EVERY]
    assert known == sorted(set(known))
    assert all(re.fullmatch(r"SV\d{3}", one) for one in known)


def test_severities_are_those_of_sarif() -> None:
    assert [severity.name for severity in Severity] == ["note", "warning", "error"]
