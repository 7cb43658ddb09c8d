"""Where settings come from, and that wrong ones are told in one line before anything moves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from support.processes import run_forked
from support.sidecar.volume import Volume, run_cli

import sharedvol_sidecar.commands.collect  # noqa: F401 - before a child that may not read it is forked
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.config.loading import load


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SHAREDVOL_")]:
        monkeypatch.delenv(name)


def test_flag_then_environment_then_file_then_default(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"from": Path("/flag"), "to": Path("/to")}
    assert load(given, None).quiet == 2.0
    config.write_text('quiet = 3\nfrom = "/file"\nkinds = ["a", "b"]\ntemplate = "{name}"\n')
    assert load({"to": Path("/to")}, config).from_ == Path("/file")
    assert load(given, config).quiet == 3.0
    monkeypatch.setenv("SHAREDVOL_QUIET", "4")
    assert load(given, config).quiet == 4.0
    loaded = load({**given, "quiet": 5.0}, config)
    assert (loaded.quiet, loaded.from_, loaded.kinds, loaded.template) == (5.0, Path("/flag"), ("a", "b"), "{name}")
    monkeypatch.setenv("SHAREDVOL_KINDS", "x, y")
    assert load(given, config).kinds == ("x", "y")


def test_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREDVOL_QUIET", "")
    assert load({"from": Path("/a"), "to": Path("/b")}, None).quiet == 2.0


def test_all_by_environment(volume: Volume, config: Path) -> None:
    volume.write("c1/results/a", "x")
    config.write_text("quiet = 0\n")
    environment = {
        "SHAREDVOL_FROM": str(volume.spool),
        "SHAREDVOL_TO": str(volume.collected),
        "SHAREDVOL_CONFIG": str(config),
    }
    done = run_cli("once", "--json", environment=environment)
    assert (done.returncode, json.loads(done.stdout)["collected"]) == (0, 1)
    assert volume.bag() == {"x": 1}


BAD = {
    "negative quiet": (["--quiet", "-1"], "quiet"),
    "no number": (["--quiet", "nan"], "quiet"),
    "endless": (["--quiet", "inf"], "quiet"),
    "unknown field": (["--template", "{nam}/{name}"], "template"),
    "leaves": (["--template", "../{name}"], "template"),
    "pattern": (["--pattern", "(unclosed"], "pattern"),
    "pattern without container": (["--pattern", "x"], "container"),
    "kinds": (["--kinds", "../x"], "kinds"),
    "no kinds": (["--kinds", ","], "kinds"),
    "workers": (["--workers", "9"], "workers"),
    "missing config": (["--config", "/nowhere/at/all.toml"], "all.toml"),
}


def assert_refused(volume: Volume, args: list[str], word: str) -> None:
    target = volume.write("c1/results/a", "x")
    done = run_cli("once", *args)
    assert done.returncode == 2, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert word in done.stderr and "Traceback" not in done.stderr
    assert target.read_text() == "x" and volume.files() == {}


@pytest.mark.parametrize(("args", "word"), BAD.values(), ids=list(BAD))
def test_wrong_setting_is_told_in_one_line(volume: Volume, args: list[str], word: str) -> None:
    assert_refused(volume, ["--from", str(volume.spool), "--to", str(volume.collected), *args], word)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("quiet = ", "TOML"),
        ("quite = 3", "quite"),
        ('quiet = "long"', "quiet"),
        ("interval = -1", "interval"),
        ("[nested]\na = 1", "nested"),
        ('from = "a\\u0000b"', "from"),
        ("\x00", "TOML"),
        ('"new\\nline" = 1', "setting"),
    ],
)
def test_wrong_file_is_told_in_one_line(volume: Volume, config: Path, text: str, word: str) -> None:
    config.write_text(text)
    directories = ["--to", str(volume.collected)] + ([] if "from" in text else ["--from", str(volume.spool)])
    assert_refused(volume, [*directories, "--config", str(config)], word)


def test_file_that_is_no_text(volume: Volume, config: Path) -> None:
    config.write_bytes(b"\xff\xfe")
    assert_refused(
        volume, ["--from", str(volume.spool), "--to", str(volume.collected), "--config", str(config)], "TOML"
    )


@pytest.mark.parametrize("flag", ["--from", "--to"])
def test_directory_that_is_missing_or_none(volume: Volume, tmp_path: Path, flag: str) -> None:
    other = ["--to", str(volume.collected)] if flag == "--from" else ["--from", str(volume.spool)]
    assert_refused(volume, other, flag)
    assert_refused(volume, [*other, flag, str(tmp_path / "missing")], flag)
    (tmp_path / "file").write_text("x")
    assert_refused(volume, [*other, flag, str(tmp_path / "file")], flag)


def test_directories_in_each_other(volume: Volume, tmp_path: Path) -> None:
    inside = volume.spool / "c1" / "collected"
    inside.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inside)
    for spool, collected in (
        (volume.spool, inside),
        (volume.spool, tmp_path / "link"),
        (tmp_path / "link", volume.spool),
        (volume.spool, volume.spool),
        (volume.spool, volume.spool / "c1" / ".."),
    ):
        assert_refused(volume, ["--from", str(spool), "--to", str(collected)], "--to")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's directories need root")
@pytest.mark.parametrize("forbidden", ["spool", "collected"])
def test_directory_that_cannot_be_written(forbidden: str) -> None:
    with tempfile.TemporaryDirectory() as top:  # one that others may enter
        os.chmod(top, 0o755)
        volume = Volume(Path(top, "spool"), Path(top, "collected"))
        target = volume.write("c1/results/a", "x")
        (volume.collected if forbidden == "spool" else volume.spool).chmod(0o777)

        def as_nobody() -> tuple[int, str]:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            told = io.StringIO()
            with contextlib.redirect_stderr(told):
                try:
                    main(["once", "--from", str(volume.spool), "--to", str(volume.collected)])
                except SystemExit as end:
                    return int(end.code or 0), told.getvalue()
            return 0, told.getvalue()

        code, told = run_forked(as_nobody)
        assert (code, len(told.strip().splitlines())) == (2, 1), told
        assert str(volume.spool if forbidden == "spool" else volume.collected) in told and "cannot be written" in told
        assert target.read_text() == "x" and volume.files() == {}


def test_summary_as_json_and_in_words(volume: Volume) -> None:
    volume.write("c1/results/a", "x")
    volume.write("results/nothing", "x")
    counts = json.loads(volume.cli("once", "--json", "--quiet", "0").stdout)
    assert (counts["collected"], counts["unmatched"]) == (1, 1)
    assert "left 1" in volume.cli("once", "--quiet", "0").stdout


def test_hostile_names_do_not_reach_the_terminal(volume: Volume) -> None:
    for name in ("\x1b]0;owned\x07", "two\nlines", "\x9b31m", "\u202egnp.exe"):
        (volume.spool / name).write_text("x")
        volume.write(f"c1/results/{name}", "x")
    (volume.spool / os.fsdecode(b"\xff\x1b[2J")).symlink_to("x")
    done = volume.cli("once", "--quiet", "0")
    assert done.returncode == 0
    assert not any(letter in done.stdout + done.stderr for letter in "\x1b\x07\x9b\u202e")
    assert len(done.stderr.strip().splitlines()) == 5
