"""``sharedvol doctor``: words, JSON, exit codes, progress."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharedvol.cli import doctor as doctor_command
from sharedvol.cli import main
from sharedvol.cli.doctor import CODES
from sharedvol.doctor import Finding, Report
from sharedvol.doctor.advice import CATALOGUE, known, meaning
from sharedvol.doctor.examination import BETWEEN, EXPERIMENTS
from sharedvol.doctor.experiments.names_and_clocks import OF_PEERS
from sharedvol.doctor.report import Verdict, worst

DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def fake(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    def examine(directory: str, **options: object) -> Report:
        return Report(directory, findings)

    monkeypatch.setattr(doctor_command, "examine", examine)


def test_a_sound_directory_is_ok_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    assert said["verdict"] == "ok"
    assert said["peer"] is None
    assert {one["id"] for one in said["findings"]} >= {experiment.id for experiment in EXPERIMENTS}
    assert all(one.keys() == {"id", "title", "verdict", "detail", "why", "todo"} for one in said["findings"])
    assert all(one["todo"] == "" for one in said["findings"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verdict", CODES)
def test_the_exit_code_is_that_of_the_worst_line(
    verdict: Verdict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, Finding("locks.flock", "ok", "fine"), Finding("locks.kill", verdict, "seen"))
    assert main(["doctor", "volume"]) == {"ok": 0, "degraded": 1, "unknown": 1, "unsafe": 3}[verdict]
    out = capsys.readouterr().out
    assert out.startswith(f"volume: {verdict}\n")
    about = CATALOGUE["locks.kill"]
    assert (about.why in out) == (verdict != "ok")
    assert (about.todo in out) == (verdict != "ok")


def test_where_no_peer_comes_the_rest_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake(monkeypatch, Finding("locks.flock", "ok", "fine"))
    assert main(["doctor", str(tmp_path), "--peer", "x", "--wait", "0.1", "--json"]) == 75
    told = capsys.readouterr()
    assert json.loads(told.out)["peer"] is None
    assert "no second doctor came" in told.err


def test_the_worst_of_all_is_told() -> None:
    assert worst([]) == "ok"
    assert worst(["unknown", "ok"]) == "unknown"
    assert worst(["degraded", "unknown"]) == "degraded"
    assert worst(["degraded", "unsafe", "unknown"]) == "unsafe"


def test_verbose_says_why_of_lines_that_are_ok(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, Finding("locks.flock", "ok", "fine"))
    main(["doctor", "volume", "--verbose"])
    assert CATALOGUE["locks.flock"].why in capsys.readouterr().out


def test_nothing_that_others_wrote_reaches_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, Finding("peer.identity", "ok", "named '\x1b[2J\x07\n  ok        forged'"))
    main(["doctor", "vol\x1b[2Jume"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(("what", "words"), [("missing", "mount the volume"), ("file", "name the volume's directory")])
def test_what_is_no_directory_is_told(
    what: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", str(tmp_path / what)]) == 66
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--patience", "0"], ["--patience", "x"], ["--wait", "-1"], ["--peer", "../x"], ["--peer", ".x"]]
)
def test_wrong_usage_is_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_every_line_has_a_meaning() -> None:
    for experiment in (*EXPERIMENTS, *OF_PEERS):
        assert all(CATALOGUE[experiment.id])
    for experiment in BETWEEN:
        assert known(f"peer.{experiment.id}")
        assert meaning(f"through.{experiment.id}").title.endswith("through the other mount")
    assert not known("peer.nonsense")


def test_every_line_is_documented() -> None:
    page = DOCS.read_text()
    rows = [f"| `{id}` | {about.title} | {about.why} | {about.todo} |" for id, about in CATALOGUE.items()]
    assert [row for row in rows if row not in page] == []
    assert all(f"| {code} |" in page for code in (0, 1, 2, 3, 66, 69, 75))
