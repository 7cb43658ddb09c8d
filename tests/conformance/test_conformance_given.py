"""The suite with an adapter that is given, as the author of another language's runs it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from adapter import LIMIT
from kinds import REFERENCES
from rules import RULES

HERE = Path(__file__).parent
PYTHON = shlex.join(REFERENCES["python"].command)
SHELL = shlex.join(REFERENCES["shell"].command)
NO_LOCK = shlex.join([sys.executable, str(HERE / "broken.py"), "no lock"])


def run(adapter: str, choice: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-v", "--adapter", adapter]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SHAREDVOL_CONF"))
    }
    return subprocess.run(
        [*command, "-k", choice, str(HERE)],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_given_adapter_has_a_seat_in_every_test() -> None:
    done = run(PYTHON, "LOCK-9 and not -r")
    assert done.returncode == 0, done.stdout
    ran = [line.split("[")[1].split("]")[0] for line in done.stdout.splitlines() if " PASSED " in line]
    seatings = {"given-given", "given-python", "python-given", "given-shell", "shell-given"}
    assert set(ran) == {f"LOCK-9.other_locks-{names}" for names in seatings}


def test_what_the_given_adapter_does_not_claim_is_told() -> None:
    done = run(SHELL, "grows or silent")
    assert done.returncode == 0, done.stdout
    assert "FENCE-2.grows-given-given] SKIPPED" in done.stdout
    assert "shell does not claim: fence" in done.stdout
    assert "HOLD-3.silent-given-python] PASSED" in done.stdout


def test_given_adapter_that_is_wrong_fails() -> None:
    done = run(NO_LOCK, "LOCK-1.exclusive and given-python")
    assert done.returncode == 1, done.stdout
    assert "LOCK-1.exclusive-given-python] FAILED" in done.stdout


@pytest.mark.parametrize("command", ["no-such-command", "sh -c 'read line; echo ok 2 x both lock'"])
def test_command_that_is_no_adapter_is_told_at_once(command: str) -> None:
    done = run(command, "LOCK")
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert f"adapter {command!r}: " in done.stdout


def test_readme_has_every_rule_as_it_is() -> None:
    lines = (HERE / "README.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| [A-Z]+-[0-9]+\.", line)]
    assert sorted(rows) == sorted(rule.row() for rule in RULES.values())


def test_every_rule_is_one_of_the_protocol() -> None:
    protocol = (HERE.parents[1] / "docs" / "protocol.md").read_text()
    numbered = set(re.findall(r"^- \*\*([A-Z]+-[0-9]+)\*\*", protocol, re.MULTILINE))
    assert {key.split(".")[0] for key in RULES} <= numbered
