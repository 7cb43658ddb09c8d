"""A mistyped variable is reported with the name that was meant; a variable of another program is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import LIMIT, reaped

from sharedvol.environment import NAMES, mistyped
from sharedvol_sidecar.config.secret import SECRET
from sharedvol_sidecar.config.settings import Settings, variable

BIN = Path(sys.executable).parent


def test_every_setting_is_known() -> None:
    for field in Settings.model_fields:
        assert {variable(field), variable(field) + SECRET} <= NAMES


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SHAREDVOL_FORM", "SHAREDVOL_FROM"),
        ("SHAREDVOL_CATLOG_FILE", "SHAREDVOL_CATALOG_FILE"),
        ("SHAREDVOL_INTERVALL", "SHAREDVOL_INTERVAL"),
        ("SHAREDVOL_MIN-FREE", "SHAREDVOL_MIN_FREE"),
        ("SHAREDVOL_DATABASE_PASSWD_FILE", "SHAREDVOL_DATABASE_PASSWORD_FILE"),
        ("SHARDVOL_STRICT", "SHAREDVOL_STRICT"),
        ("sharedvol_to", "SHAREDVOL_TO"),
    ],
)
def test_a_name_that_is_near_is_reported(name: str, meant: str) -> None:
    assert list(mistyped({name: "x", "PATH": "/"})) == [(name, meant)]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "SHAREDVOL_FROM",
            "SHAREDVOL_HOME",
            "SHAREDVOL_TOP",
            "SHAREDVOL_VERSION",
            "SHAREDVOL_DIR",
            "SHAREDVOL_TEST_R",
        ),
        *("SHAREDVOL_DATABASE_URL", "SHAREDVOL_TOKEN", "SHAREDVOL_", "SHARED_VOLUME", "SHARE", "SHAREDVOL_TEST_R"),
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert list(mistyped({name: "x"})) == []


def test_commands_warn_and_do_their_work(tmp_path: Path) -> None:
    environment = {**os.environ, "SHAREDVOL_FORM": "x", "SHAREDVOL_HOME": "x"}
    words = "warning: nothing reads the environment variable 'SHAREDVOL_FORM'; did you mean SHAREDVOL_FROM?\n"
    for command in (["sharedvol", "whoami"], ["sharedvol-sidecar", "config", "show", "--from", "a", "--to", "b"]):
        done = subprocess.run([BIN / command[0], *command[1:]], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, f"{command[0]}: {words}") and done.stdout
    (tmp_path / "spool").mkdir()
    (tmp_path / "to").mkdir()
    places = ["--from", tmp_path / "spool", "--to", tmp_path / "to", "--listen", "off"]
    command = [BIN / "sharedvol-sidecar", "run", *places]
    with reaped(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        process.terminate()
        process.wait(LIMIT)
        process.stdout.close()
    assert (line["event"], line["name"], line["meant"]) == ("unknown_variable", "SHAREDVOL_FORM", "SHAREDVOL_FROM")
