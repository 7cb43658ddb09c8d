"""What the commands print: no secret, whatever the URL, and no control character, whatever the names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from support.secret_urls import MARKER, secret_urls
from support.sidecar.volume import CLI, Volume

from sharedvol_sidecar.cli import main

EVIL = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202eall is well\x7f"


def invoke(*arguments: str, **environment: str) -> Result:
    """The command in this process; what it raises that is not an exit is in the output as a traceback would be."""
    result = CliRunner(env=environment).invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SHAREDVOL_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
def test_no_url_is_repeated_and_none_ends_in_a_traceback(volume: Volume, tmp_path: Path) -> None:
    both = ("--from", str(volume.spool), "--to", str(volume.collected))
    for number, url in enumerate(secret_urls()):
        config = tmp_path / f"{number}.toml"
        config.write_text(f"catalog = {json.dumps(url)}\n")
        broken = tmp_path / f"{number}-broken.toml"
        broken.write_text(f'catalog = "{url}')
        results = [
            invoke("config", "show", *both, SHAREDVOL_CATALOG=url),
            invoke("config", "check", *both, SHAREDVOL_CATALOG=url),
            invoke("config", "check", *both, "--config", str(config)),
            invoke("config", "check", *both, "--config", str(broken)),
            invoke("ls", "--to", str(volume.collected), SHAREDVOL_CATALOG=url),
            invoke("ls", "--to", str(volume.collected), "--catalog", url),
            invoke("config", "check", *both, SHAREDVOL_CATALOG_FILE=url.replace("\0", "")),
            invoke("config", "check", *both, SHAREDVOL_QUIET=url if "@" in url else ""),
        ]
        if (
            "://" in url and "127.0.0.1:1/db" in url and not url.startswith(MARKER)
        ):  # of other text nothing tells that it is a URL
            results += [invoke("ls", "--to", str(volume.collected), "--limit", url), invoke(url)]
        for result in results:
            assert MARKER not in result.output, (url, result.output)
            assert "Traceback" not in result.output and result.exit_code in (0, 1, 2), (url, result.output)
        assert all(len(result.output.splitlines()) == 1 for result in results[1:4]), url


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("option", ["charset=x", "connect_timeout=x", "nosuch=1", "ssl_ca=/nope", "port=abc", "ssl=x"])
def test_a_bad_option_is_an_error_of_the_setting_that_names_both(volume: Volume, tmp_path: Path, option: str) -> None:
    url = f"mysql://u:{MARKER}@127.0.0.1:1/db?{option}"
    both = ("--from", str(volume.spool), "--to", str(volume.collected))
    secret = tmp_path / "secret"
    secret.write_text(url)
    name = option.partition("=")[0]
    for arguments, environment, source in (
        (("once", *both), {"SHAREDVOL_CATALOG": url}, "SHAREDVOL_CATALOG"),
        (("config", "check", *both, "--catalog", url), {}, "--catalog"),
        (("ls", *both[2:]), {"SHAREDVOL_CATALOG": url}, "SHAREDVOL_CATALOG"),
        (("verify", *both[2:], "--catalog", url), {}, "--catalog"),
        (("prune", *both[2:], "--keep", "logs=1d"), {"SHAREDVOL_CATALOG_FILE": str(secret)}, "SHAREDVOL_CATALOG_FILE"),
    ):
        result = invoke(*arguments, **environment)
        assert result.exit_code == 2, result.output
        (line,) = result.output.splitlines()
        assert line.startswith(f"sharedvol-sidecar: setting 'catalog' ({source}): "), line
        assert repr(name) in line


def assert_harmless(result: Result) -> None:
    assert result.exit_code in (0, 1, 2), result
    for line in result.output.split("\n"):
        assert line.isprintable(), ascii(line)


@pytest.mark.usefixtures("clean")
def test_names_reach_no_stream_unescaped(volume: Volume, tmp_path: Path) -> None:
    for place in (f"{EVIL}/results", f"c1/results/{EVIL}", "results", "logs"):
        volume.write(f"{place}/{EVIL}.json", "1")
        (volume.spool / place / f"link{EVIL}").symlink_to("/")
    volume.write(f"top{EVIL}", "at the top")
    (volume.collected / EVIL).mkdir()
    (volume.collected / EVIL / f"foreign{EVIL}").write_text("not in the catalog")
    evil_file = tmp_path / f"{EVIL}.toml"
    evil_file.write_text(f"{EVIL.splitlines()[0]!r} = 1\n".encode("unicode_escape").decode())
    both = ("--from", str(volume.spool), "--to", str(volume.collected))
    to = both[2:]
    evil_to = ("--to", str(volume.collected / EVIL / "missing"))
    commands = [
        ("once", "--quiet", "0", "--workers", "1", *both),
        ("ls", *to),
        ("ls", "--json", *to),
        ("verify", *to),
        ("verify", "--json", *to),
        ("rebuild", *to),
        ("prune", *to, "--keep", "results=1s"),
        ("prune", *to, "--keep", "results=0s", "--apply", "--json"),
        ("prune", *to, "--keep", EVIL),
        ("ls", *evil_to),
        ("ls", *to, "--since", EVIL),
        ("ls", *to, "--limit", EVIL),
        ("once", *both[:2], *evil_to),
        ("once", *both, "--template", f"{{{EVIL}}}"),
        ("config", "show", *both, "--config", str(evil_file)),
        ("config", "check", *both, "--pattern", f"({EVIL}"),
        ("config", "show", *both, "--kinds", EVIL),
        ("config", "show", "--json", *both, "--allowed-hosts", EVIL),
        ("health", "--listen", EVIL),
        ("health", "--config", str(tmp_path / EVIL)),
        (EVIL,),
        ("ls", f"--{EVIL}"),
        ("ls", *to, EVIL),
    ]
    for command in commands:
        assert_harmless(invoke(*command))
    assert_harmless(invoke("config", "check", *both, SHAREDVOL_QUIET=EVIL))


def test_output_that_cannot_be_written_is_exit_code_74_in_one_line(volume: Volume) -> None:
    volume.write("c1/results/a", "1")
    for command in (("once", "--quiet", "0", "--from", str(volume.spool)), ("ls",)):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*CLI, *command, "--to", str(volume.collected)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=90,
                check=False,
            )
        assert done.returncode == 74 and len(done.stderr.splitlines()) == 1, done
        assert "cannot write the output: no space left on device (ENOSPC)" in done.stderr
    assert len(volume.files()) == 1


def test_problems_that_cannot_be_reported_do_not_stop_the_collecting(volume: Volume) -> None:
    (volume.spool / "c1" / "results").mkdir(parents=True)
    (volume.spool / "c1" / "results" / "link").symlink_to("/")
    volume.write("c2/results/a", "1")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*CLI, "once", "--quiet", "0", "--from", str(volume.spool), "--to", str(volume.collected)],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0 and "collected 1 files" in done.stdout
    assert len(volume.files()) == 1


def test_an_error_of_the_system_names_what_it_is_about() -> None:
    from sharedvol_sidecar.commands.exit import unusable

    many = unusable(OSError(24, "Too many open files"), 1)
    assert isinstance(many, click.ClickException)
    assert "EMFILE" in many.message and "limit of open files" in many.message and "--from" not in many.message
    assert unusable(OSError(5, "Input/output error", "/x"), 1).message == (
        "cannot continue with '/x': input/output error (EIO); check the disk"
    )
