"""The command ``sharedvol``, run as people run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sharedvol import FileLock, parse_name


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sharedvol.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_whoami_tells_the_container_and_a_new_worker_each_time() -> None:
    first, second = (json.loads(run("whoami", "--json", HOSTNAME="3f9c0d1e2b4a").stdout) for _ in range(2))
    assert first["container"] == second["container"] == "3f9c0d1e2b4a"
    assert first["source"] == "HOSTNAME"
    assert first["worker"] != second["worker"]
    assert first["incarnation"] == second["incarnation"]


def test_whoami_for_people_says_where_the_name_is_from_and_that_it_was_made_safe() -> None:
    out = run("whoami", HOSTNAME="../x").stdout
    assert "from HOSTNAME, made safe from '../x'" in out


@pytest.mark.parametrize("form", ["unique", "container"])
def test_path_builds_what_parse_takes_apart(form: str) -> None:
    path = run("path", form, "results", "job_42.json.gz", HOSTNAME="3f9c0d1e2b4a").stdout.rstrip("\n")
    assert path.startswith("results/job_42_3f9c0d1e2b4a")
    parsed = json.loads(run("path", "parse", path, "--json").stdout)
    assert (parsed["form"], parsed["name"], parsed["container"]) == (form, "job_42.json.gz", "3f9c0d1e2b4a")


def test_path_log_is_todays_log_of_the_container() -> None:
    path = run("path", "log", "logs", HOSTNAME="3f9c0d1e2b4a").stdout.strip()
    assert parse_name(path).form == "log"
    assert parse_name(path).container == "3f9c0d1e2b4a"


def test_two_calls_build_two_unique_paths() -> None:
    assert run("path", "unique", "r", "a.json").stdout != run("path", "unique", "r", "a.json").stdout


@pytest.mark.parametrize(
    "arguments",
    [("path", "unique", "r", "a/b"), ("path", "container", "r", "x" * 255), ("path", "parse", "plain.json")],
)
def test_a_bad_name_is_one_line_and_exit_code_1(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("sharedvol: ")
    assert result.stderr.count("\n") == 1


def test_lock_passes_on_the_exit_code_and_output(tmp_path: Path) -> None:
    result = run("lock", str(tmp_path / "l"), "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_lock_gives_128_plus_n_for_a_command_that_a_signal_killed(tmp_path: Path) -> None:
    assert run("lock", str(tmp_path / "l"), "--", "sh", "-c", "kill -KILL $$").returncode == 137


def test_lock_holds_both_families_while_the_command_runs(tmp_path: Path) -> None:
    path = str(tmp_path / "l")
    inner = [sys.executable, "-m", "sharedvol.cli", "lock", path, "--timeout", "0", "--", "true"]
    assert run("lock", path, "--", *inner).returncode == 75
    assert run("lock", path, "--", "flock", "--nonblock", path, "true").returncode == 1
    probe = f"import fcntl; fcntl.lockf(open({path!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert b"BlockingIOError" in run("lock", path, "--", sys.executable, "-c", probe).stderr.encode()


def test_shared_locks_go_together_and_exclude_an_exclusive_one(tmp_path: Path) -> None:
    path = str(tmp_path / "l")
    inner = [sys.executable, "-m", "sharedvol.cli", "lock", path, "--timeout", "0"]
    assert run("lock", path, "--shared", "--", *inner, "--shared", "--", "true").returncode == 0
    assert run("lock", path, "--shared", "--", *inner, "--", "true").returncode == 75


def test_a_fenced_lock_gives_the_command_its_token(tmp_path: Path) -> None:
    path = str(tmp_path / "l.lock")
    command = ("--", "sh", "-c", "echo $SHAREDVOL_LOCK_TOKEN")
    tokens = [int(run("lock", path, "--fenced", *command).stdout) for _ in range(2)]
    with FileLock(path, fenced=True) as lock:
        assert tokens == [lock.token - 2, lock.token - 1]
    assert run("lock", path, *command, SHAREDVOL_LOCK_TOKEN="5").stdout == "\n", "that of a lock further out"


def test_a_fenced_lock_tells_status_what_it_is_for(tmp_path: Path) -> None:
    path = str(tmp_path / "l.lock")
    status = [sys.executable, "-m", "sharedvol.cli", "status", str(tmp_path)]
    options = ("--fenced", "--purpose", "nightly \x1b[31m", "--")
    told = run("lock", path, *options, *status, HOSTNAME="c1").stdout
    (line,) = [line for line in told.splitlines() if line.startswith("  l.lock")]
    assert "exclusive, by process " in line
    assert 'replica c1, for "nightly \\x1b[31m", since 2' in line
    (lock,) = json.loads(run("lock", path, *options, *status, "--json", HOSTNAME="c1").stdout)["locks"]
    assert (lock["path"], lock["holder"]["replica"]) == ("l.lock", "c1"), "the files beside it are no locks"
    assert (lock["holder"]["purpose"], lock["holder"]["token"] > 0) == ("nightly \x1b[31m", True)
    (lock,) = json.loads(run("status", str(tmp_path), "--json").stdout)["locks"]
    assert (lock["state"], lock["holder"]) == ("free", None)
    (lock,) = json.loads(run("lock", path, "--", *status, "--json").stdout)["locks"]
    assert (lock["state"], lock["holder"]) == ("exclusive", None), "a plain holder says nothing"


@pytest.mark.parametrize(
    "options", [("--fenced", "--shared"), ("--purpose", "p"), ("--fenced", "--purpose", "x" * 201)]
)
def test_a_lock_that_cannot_be_fenced_so_is_wrong_usage(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run("lock", str(tmp_path / "l"), *options, "--", "true")
    assert result.returncode == 2
    assert "usage: sharedvol lock" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_lost_while_the_command_runs_is_74(tmp_path: Path) -> None:
    path = str(tmp_path / "l")
    result = run("lock", path, "--fenced", "--", "rm", path)
    assert result.returncode == 74
    assert "was lost" in result.stderr and "Traceback" not in result.stderr


def test_lock_that_is_not_free_in_time_is_75_and_the_command_does_not_run(tmp_path: Path) -> None:
    with FileLock(tmp_path / "l"):
        result = run("lock", str(tmp_path / "l"), "--timeout", "0.05", "--", "touch", str(tmp_path / "ran"))
    assert result.returncode == 75
    assert str(tmp_path / "l") in result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("command", "code"), [("/nonexistent/command", 127), ("/", 126)], ids=["not found", "not executable"]
)
def test_a_command_that_cannot_run_has_the_shells_exit_code(tmp_path: Path, command: str, code: int) -> None:
    assert run("lock", str(tmp_path / "l"), "--", command).returncode == code


def test_an_unusable_lock_file_is_74(tmp_path: Path) -> None:
    result = run("lock", str(tmp_path / "missing" / "l"), "--", "true")
    assert result.returncode == 74
    assert "create its directory" in result.stderr


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "soon"])
def test_a_bad_timeout_is_wrong_usage(tmp_path: Path, timeout: str) -> None:
    result = run("lock", str(tmp_path / "l"), f"--timeout={timeout}", "--", "true")
    assert result.returncode == 2
    assert "give 0 or more" in result.stderr


def test_the_lock_outlives_a_killed_wrapper_as_long_as_the_command_runs(tmp_path: Path) -> None:
    path = tmp_path / "l"
    command = "echo started; read end; echo ended"
    wrapper = subprocess.Popen(
        [sys.executable, "-m", "sharedvol.cli", "lock", str(path), "--", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert wrapper.stdin and wrapper.stdout
    assert wrapper.stdout.readline() == b"started\n"
    wrapper.kill()
    wrapper.wait(timeout=30)
    lock = FileLock(path)
    with pytest.raises(TimeoutError):
        lock.acquire(timeout=0)
    wrapper.stdin.close()  # the command ends
    assert wrapper.stdout.read() == b"ended\n"
    with lock.acquire(timeout=30):
        pass
    wrapper.stdout.close()


def test_a_daemon_that_the_command_leaves_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "l"
    pid_file = tmp_path / "pid"
    command = f"sleep 60 >/dev/null 2>&1 & echo $! > {pid_file}"
    assert run("lock", str(path), "--", "sh", "-c", command).returncode == 0
    try:
        with FileLock(path).acquire(timeout=30):
            pass
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_a_termination_signal_reaches_the_command(tmp_path: Path) -> None:
    command = "trap 'echo cleaned; exit 3' TERM; echo started; while :; do sleep 0.05; done"
    wrapper = subprocess.Popen(
        [sys.executable, "-m", "sharedvol.cli", "lock", str(tmp_path / "l"), "--", "sh", "-c", command],
        stdout=subprocess.PIPE,
    )
    assert wrapper.stdout
    assert wrapper.stdout.readline() == b"started\n"
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(timeout=30) == 3
    assert wrapper.stdout.read() == b"cleaned\n"
    wrapper.stdout.close()


@pytest.mark.parametrize("arguments", [(), ("whoami",), ("path",), ("path", "unique"), ("lock",)])
def test_help_is_there_and_exits_0(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--help")
    assert result.returncode == 0
    assert "usage: sharedvol" in result.stdout


def test_no_command_is_wrong_usage() -> None:
    assert run().returncode == 2


@pytest.mark.parametrize("arguments", [["whoami"], ["status", "."], ["lint", "--list-rules"]])
def test_output_that_cannot_be_written_is_an_error_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sharedvol.cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
    assert done.returncode == 74
    assert done.stderr.count("\n") == 1
    assert "cannot write the output: no space left on device (ENOSPC)" in done.stderr


def test_a_reader_that_went_away_gets_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "sharedvol.cli", "whoami"], stdout=pipe, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"")
