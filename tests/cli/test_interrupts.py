"""Ctrl-C and an output that cannot be written: every command ends with one line and an exit code of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.named import sessions
from support.processes import LIMIT, reaped, wait_blocked, wait_until
from support.servers import Database

from sharedvol import FileLock, MigrationCoordinator

BIN = Path(sys.executable).parent

STRIKER = """
import os, sys
def strike(event, arguments):
    if event == "open" and os.path.basename(os.fsdecode(str(arguments[0]))) == moment.removeprefix("open "):
        os.kill(os.getpid(), 2)
class Striker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == moment:
            sys.meta_path.remove(Striker)
            os.kill(os.getpid(), 2)
moment = os.environ.pop("INTERRUPT_AT")
if moment.startswith("open "):
    sys.addaudithook(strike)
sys.meta_path.insert(0, Striker)
if moment == "the end":
    import atexit
    atexit.register(os.kill, os.getpid(), 2)
"""
"""A `sitecustomize` that sends the Ctrl-C when a certain module is about to be imported, a certain file to be
opened, or after the command."""


@pytest.fixture
def striker(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(STRIKER)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def run(*command: str, env: dict[str, str] | None = None, **streams: int) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([BIN / command[0], *command[1:]], **streams, text=True, timeout=LIMIT, check=False, env=env)


@pytest.mark.parametrize(
    ("moment", "command"),
    [
        ("signal", ["sharedvol", "whoami"]),
        ("importlib", ["sharedvol", "whoami"]),
        ("enum", ["sharedvol", "whoami"]),
        ("sharedvol.errors", ["sharedvol", "whoami"]),
        ("sharedvol.locks", ["sharedvol", "whoami"]),
        ("sharedvol.cli", ["sharedvol", "whoami"]),
        ("argparse", ["sharedvol", "whoami"]),
        ("sharedvol.lint.rules", ["sharedvol", "lint", "--list-rules"]),
        ("sharedvol_sidecar.cli", ["sharedvol-sidecar", "config", "show"]),
        ("click", ["sharedvol-sidecar", "config", "show"]),
        ("sharedvol_sidecar.commands.config", ["sharedvol-sidecar", "config", "show"]),
        ("sharedvol_sidecar.commands.catalog", ["sharedvol-sidecar", "verify", "--to", "."]),
        ("sharedvol_sidecar.service.service", ["sharedvol-sidecar", "run", "--from", ".", "--to", "."]),
    ],
)
def test_ctrl_c_while_a_command_loads_is_one_line_and_130(
    moment: str, command: Sequence[str], striker: dict[str, str]
) -> None:
    done = run(*command, env={**striker, "INTERRUPT_AT": moment})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{command[0]}: interrupted\n")


def test_the_commands_import_nothing_before_they_handle_ctrl_c() -> None:
    code = "import sys; before = set(sys.modules); sys.modules['signal'] = None\ntry: import sharedvol_start\n"
    code += "except ImportError: print(sorted(set(sys.modules) - before - {'signal'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "[]\n"


def test_a_program_that_imports_the_start_keeps_its_handler() -> None:
    code = "import signal, sharedvol_start; print(signal.getsignal(2) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "True\n"


def test_ctrl_c_while_verify_compares_a_file(tmp_path: Path, striker: dict[str, str]) -> None:
    for name in ("a", "b"):
        file = tmp_path / "spool" / "c1" / "results" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    to = tmp_path / "to"
    to.mkdir()
    run("sharedvol-sidecar", "once", "--quiet", "0", "--from", str(tmp_path / "spool"), "--to", str(to))
    first = min(path.name for path in to.rglob("*.json"))
    done = run("sharedvol-sidecar", "verify", "--to", str(to), env={**striker, "INTERRUPT_AT": f"open {first}"})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sharedvol-sidecar: interrupted\n")


def test_ctrl_c_while_a_migration_runs(tmp_path: Path, database: Database) -> None:
    database.query("CREATE TABLE brake AS SELECT 1 AS id")
    (tmp_path / "001_a.sql").write_text("CREATE TABLE a (id INT);\nINSERT INTO a SELECT id FROM brake;\n")
    command = [BIN / "sharedvol", "migrate", "run", database.url, str(tmp_path)]
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES brake WRITE")
        with reaped(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as process:
            wait_until(lambda: bool(sessions(database, "info LIKE 'INSERT INTO a%'")), "the second statement")
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (130, "")
        *progress, last = said.splitlines()
        assert last == "sharedvol: interrupted"
        assert all(line.startswith("[1/1] 001_a.sql") for line in progress), said
    MigrationCoordinator(database.url, tmp_path).run()  # the lock is free, and progress is on record
    assert database.query("SELECT id FROM a") == [(1,)]


def test_ctrl_c_after_the_end_changes_nothing(striker: dict[str, str]) -> None:
    done = run("sharedvol", "lock", "/nonexistent/l", "true", env={**striker, "INTERRUPT_AT": "the end"})
    assert done.returncode == 74 and done.stderr.count("\n") == 1 and "cannot open lock" in done.stderr


def test_an_ignored_ctrl_c_stays_ignored(striker: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f"trap '' INT; exec {BIN}/sharedvol whoami --json"],
        env={**striker, "INTERRUPT_AT": "sharedvol.locks"},
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.startswith(b"{")


@pytest.mark.parametrize("options", [[], ["--timeout", "600"], ["--shared"], ["--fenced"]], ids=str)
def test_ctrl_c_while_lock_waits_leaves_the_command_unstarted(tmp_path: Path, options: list[str]) -> None:
    path, ran = tmp_path / "l", tmp_path / "ran"
    command = [BIN / "sharedvol", "lock", path, *options, "--", "touch", ran]
    with (
        FileLock(path, fenced="--fenced" in options),
        reaped(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process,
    ):
        wait_blocked(path)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == (None, "sharedvol: interrupted\n")
        assert process.returncode == 130
    assert not ran.exists()
    with FileLock(path, timeout=0):
        pass


def test_ctrl_c_while_once_waits_for_a_quiet_file(tmp_path: Path) -> None:
    file = tmp_path / "spool" / "c1" / "results" / "a"
    file.parent.mkdir(parents=True)
    file.write_text("1")
    (tmp_path / "to").mkdir()
    command = [
        BIN / "sharedvol-sidecar",
        "once",
        "--quiet",
        "3600",
        "--from",
        tmp_path / "spool",
        "--to",
        tmp_path / "to",
    ]
    with reaped(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        wait_until((tmp_path / "spool" / ".sharedvol").exists, "the pass to begin")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == (None, "sharedvol-sidecar: interrupted\n")
    assert process.returncode == 130 and file.read_text() == "1"


FULL = [
    ["sharedvol", "--help"],
    ["sharedvol", "path", "unique", "r", "a"],
    ["sharedvol", "migrate", "plan", "sqlite:///{}/db", "{}", "--allow-empty"],
    ["sharedvol-sidecar", "once", "--help"],
    ["sharedvol-sidecar", "config", "show", "--from", "a", "--to", "b"],
    ["sharedvol-sidecar", "demo", "--replicas", "1", "--seconds", "2"],
]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", FULL, ids=" ".join)
def test_a_full_output_is_one_line_and_74(command: list[str], unbuffered: str, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(
            *[part.format(tmp_path) for part in command],
            stdout=full.fileno(),
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 74
    assert done.stderr == (
        f"{command[0]}: cannot write the output: no space left on device (ENOSPC); free space where it is written\n"
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [("sharedvol path unique r a/b", 1), ("sharedvol nosuch", 2), ("sharedvol-sidecar nosuch", 2)],
)
def test_errors_that_cannot_be_written_leave_exit_code_and_output_as_they_are(command: str, code: int) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*command.split(), stderr=full.fileno())
    assert (done.returncode, done.stdout) == (code, "")
    closed = run_shell(f"{BIN}/{command} 2>&-")
    assert (closed.returncode, closed.stdout) == (code, "")


def run_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=LIMIT, check=False)


def test_a_closed_output_is_no_error_and_no_other_file_takes_its_number(tmp_path: Path) -> None:
    assert run_shell(f"{BIN}/sharedvol path unique r a >&-").stderr == ""
    run_shell(f"{BIN}/sharedvol lock {tmp_path}/l -- echo text >&-")
    assert (tmp_path / "l").read_bytes() == b""


@pytest.mark.parametrize("missing", ["click", "structlog", "pydantic"])
def test_the_sidecar_without_its_extra_says_what_to_install(missing: str, tmp_path: Path) -> None:
    blocker = f"import sys\nsys.modules[{missing!r}] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    done = run("sharedvol-sidecar", "run", "--from", ".", "--to", ".", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == f"sharedvol-sidecar: {missing} is not installed; install sharedvol[sidecar]\n"
