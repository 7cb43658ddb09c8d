"""What the command ``sharedvol`` prints: no secret, whatever the URL, and no control character, whatever the names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy
from support.secret_urls import MARKER, secret_urls

from sharedvol import open_lock
from sharedvol.cli import main
from sharedvol.database.url import check_options, dialect_class, label, read_url, redact, without_secrets
from sharedvol.text import escape_unprintable, hide_credentials, message, shown

EVIL = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202eall is well\x7f"


@pytest.mark.parametrize("how", ["argument", "variable", "in the place of the command", "password file"])
def test_no_url_is_repeated_and_none_ends_in_a_traceback(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.sql").write_text("SELECT 1;")
    for url in secret_urls():
        monkeypatch.setenv("DATABASE", url.replace("\0", ""))
        arguments = {
            "argument": ["migrate", "status", url, str(tmp_path)],
            "variable": ["migrate", "status", "env:DATABASE", str(tmp_path)],
            "in the place of the command": ["migrate", url, str(tmp_path)],
            "password file": ["migrate", "status", "mysql://u@127.0.0.1:1/db", str(tmp_path), "--password-file", url],
        }[how]
        if how == "in the place of the command" and (
            url.startswith(MARKER) or "://" not in url or "@127.0.0.1:1/db" not in url
        ):
            continue  # nothing tells a part of it from the name of a command
        if set(url) & set("'\" \n"):
            continue
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        said = "".join(capsys.readouterr())
        assert MARKER not in said, (url, said)
        assert "Traceback" not in said and code in (0, 2, 69), (url, said)


def test_a_lock_url_is_not_repeated() -> None:
    for url in (f"file:///x?password={MARKER}", f"file:///{MARKER}\x01", f"file:///{MARKER}/", f"{MARKER}://h"):
        with pytest.raises(ValueError) as caught:
            open_lock(url)
        assert MARKER not in str(caught.value) or url == f"{MARKER}://h"


@pytest.mark.parametrize(
    ("url", "named", "whole"),
    [
        ("mysql://app:pw@db:3307/shop", "app@db:3307/shop", "mysql+pymysql://app:***@db:3307/shop"),
        ("mysql://app@db/shop?charset=utf8", "app@db/shop", "mysql+pymysql://app@db/shop?***"),
        (f"mysql://{MARKER}@db/shop", "db/shop", "mysql+pymysql://***@db/shop"),
        (f"mysql://u;{MARKER}:x@db/shop", "db/shop", "mysql+pymysql://***@db/shop"),
        ("sqlite:////x/y.db", "SQLite '/x/y.db'", "sqlite:////x/y.db"),
    ],
)
def test_a_database_is_named_without_what_may_be_secret(url: str, named: str, whole: str) -> None:
    assert label(read_url(url)) == named
    assert without_secrets(read_url(url)) == whole


@pytest.mark.parametrize("password", ["ö😀", "p@ss/w:%?#", ""])
def test_a_password_is_not_checked_as_an_option(password: str) -> None:
    url = read_url(f"mysql://u:{quote(password, safe='')}@h/db?charset=utf8mb4")
    dialect = dialect_class(url)
    check_options(url, dialect(dbapi=dialect.import_dbapi()))


def test_a_driver_s_words_are_kept_but_for_secrets() -> None:
    url = sqlalchemy.make_url(f"mysql://app:p%40ss@db/shop?init_command=SET%20x%3D'{MARKER}'&ssl_key=abc")
    assert redact("Access denied for user 'app'@'h'", url) == "Access denied for user 'app'@'h'"
    assert redact(f"near '{MARKER}'' at line 1; p@ss p%40ss 'abc' abcd", url) == (
        "near '***'' at line 1; *** *** '***' abcd"
    )


def test_escapes_hide_nothing_and_are_made_once() -> None:
    assert escape_unprintable("plain ö \\n") == "plain ö \\n"
    assert escape_unprintable("a\n\x1b\x9b\u202e\udcff") == "a\\n\\x1b\\x9b\\u202e\\udcff"
    assert escape_unprintable(shown("a\\\n")) == shown("a\\\n") == "a\\\\\\n"
    assert hide_credentials("see mysql://user@host/database") == "see mysql://user@host/database"
    assert hide_credentials("a@b.c at 'http://h/x?y=z': no") == "a@b.c at 'http://h/x?***': no"
    assert message(f"no 'redis://:{MARKER}@h/0'") == "no 'redis://***@h/0'"
    assert message(f"no u:{MARKER}@h\n") == "no ***@h\\n"


def test_names_reach_no_stream_unescaped(tmp_path: Path) -> None:
    volume = tmp_path / EVIL
    (volume / EVIL / "results").mkdir(parents=True)
    (volume / EVIL / "results" / EVIL).touch()
    (tmp_path / f"1_{EVIL}.sql").write_text(f"-- {EVIL}\nSELECT '")
    compose = tmp_path / f"{EVIL}.yaml"
    compose.write_text('services: {"a\\e[31m": {image: "x\\u202e", ports: ["80:80"], deploy: {replicas: 3}}}\n')
    script = tmp_path / f"{EVIL}.sh"
    script.write_text(f"rm -rf /{EVIL}\n")
    commands = [
        ["whoami"],
        ["status", str(volume)],
        ["status", f"{volume}/missing"],
        ["status", str(volume), "--kinds", f"/{EVIL}"],
        ["lint", str(compose), "--script", str(script), "--reader", "files"],
        ["lint", "--json", str(compose), "--reader", "files"],
        ["lint", EVIL],
        ["lint", "--explain", EVIL],
        ["lint", "--replicas", EVIL],
        ["doctor", f"{volume}/missing"],
        ["lock", f"{volume}/missing/x", "--", "true"],
        ["lock", f"{volume}/lock", "--", EVIL],
        ["lock", f"{volume}/lock", "--timeout", EVIL, "--", "true"],
        ["path", "parse", EVIL],
        ["migrate", "status", "sqlite://", str(tmp_path)],
        ["migrate", "run", f"sqlite:///{volume}/missing/x", str(tmp_path)],
        ["migrate", "plan", "sqlite://", f"{volume}/missing"],
        ["migrate", "run", f"env:{EVIL}", EVIL],
        ["migrate", "run", "sqlite://", str(tmp_path), "--rename", EVIL],
        [EVIL],
        ["whoami", EVIL],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "sharedvol.cli", *command],
            env={**os.environ, "HOSTNAME": EVIL},
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done
        for line in (done.stdout + done.stderr).decode("utf-8").splitlines():
            assert line.isprintable(), (command, ascii(line))
