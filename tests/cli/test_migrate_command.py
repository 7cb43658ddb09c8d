"""``sharedvol migrate`` as it is run: its words, its exit codes, and that no password is ever shown."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.named import take_lock
from support.processes import LIMIT
from support.servers import Database

PASSWORD = "s3cret'%?"


def migrate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sharedvol.cli", "migrate", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "001_a.sql").write_text("CREATE TABLE a (id INT PRIMARY KEY);\nINSERT INTO a VALUES (1);\n")
    (directory / "002_b.sql").write_text("-- nothing yet\n")
    return directory


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dev.db'}"


def test_plan_status_run_and_again(files: Path, database: Database) -> None:
    plan = migrate("plan", database.url, str(files))
    assert (plan.returncode, plan.stderr) == (0, "")
    assert plan.stdout.splitlines()[:2] == ["2 of 2 migrations would be applied", "  001_a.sql  2 statements"]
    before = migrate("status", database.url, str(files))
    assert before.returncode == 3
    assert "pending: 001_a.sql" in before.stdout
    assert database.query("SHOW TABLES") == []  # neither changed anything
    run = migrate("run", database.url, str(files))
    assert (run.returncode, run.stdout) == (0, "2 applied, 2 in all: up to date\n")
    assert [line.split(":")[0] for line in run.stderr.splitlines()] == ["[1/2] 001_a.sql", "[2/2] 002_b.sql"]
    again = migrate("run", database.url, str(files))
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to apply, 2 in all: up to date\n", "")
    after = migrate("status", database.url, str(files))
    assert (after.returncode, after.stdout) == (0, "2 of 2 migrations are applied: up to date\n")


def test_json_is_the_status(files: Path, sqlite: str) -> None:
    assert json.loads(migrate("plan", sqlite, str(files), "--json").stdout)["pending"] == ["001_a.sql", "002_b.sql"]
    run = json.loads(migrate("run", sqlite, str(files), "--json").stdout)
    assert (run["newly_applied"], run["filenames"], run["state"]) == (2, ["001_a.sql", "002_b.sql"], "up_to_date")
    status = json.loads(migrate("status", sqlite, str(files), "--json").stdout)
    assert (status["pending_migrations"], status["total_migrations"]) == (0, 2)


def test_a_failure_tells_what_was_applied(files: Path, sqlite: str) -> None:
    (files / "003_c.sql").write_text("CREATE TABLE c (id INT);\nINSERT INTO c VALUES ('private', 2);\n")
    run = migrate("run", sqlite, str(files), "--json")
    assert run.returncode == 1
    told = json.loads(run.stdout)
    assert (told["newly_applied"], told["pending"], told["state"]) == (2, ["003_c.sql"], "failed")
    assert "003_c.sql: statement 2 of 2 (line 2, INSERT INTO c)" in run.stderr
    assert "private" not in run.stderr + run.stdout
    assert run.stderr.count("003_c.sql: statement") == 1  # told once, not logged beside


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "URL", "nowhere"], 65, "Migrations directory does not exist: nowhere"),
        (["run", "URL", "FILES", "--expected-min-count", "9"], 65, "found 2, expected at least 9"),
        (["run", "URL", "FILES", "--expected-latest", "x.sql"], 65, "expected x.sql, found 002_b.sql"),
        (["run", "mysql://u@127.0.0.1:1/x", "FILES"], 69, "cannot connect to u@127.0.0.1:1/x"),
        (["run", "mysql://u:pass@word@:x/", "FILES"], 2, "not a database URL"),
        (["status", "mysql://u@127.0.0.1/x?connect_timeout=soon", "FILES"], 2, "has an option that cannot be used"),
        (["plan", "mysql+asyncmy://u@127.0.0.1/x", "FILES"], 2, "asynchronous"),
        (["run", "elsewhere://x/y", "FILES"], 2, "knows no database"),
        (["run", "sqlite://", "FILES"], 1, "in memory"),
        (["run", "URL", "FILES", "--lock-name", ""], 2, "lock_name is empty"),
        (["run", "URL", "FILES", "--resume-at", "001_a.sql:2"], 70, "has not begun here"),
        (["run", "env:NO_SUCH_VARIABLE", "FILES"], 2, "environment variable NO_SUCH_VARIABLE is not set"),
        (["run", "URL", "FILES", "--rename", "only-one"], 2, "--rename takes OLD=NEW"),
        (["run", "URL", "FILES", "--resume-at", "001_a.sql"], 2, "--resume-at takes FILE:N"),
        (["run", "URL", "FILES", "--resume-at", "001_a.sql:0"], 2, "--resume-at takes FILE:N"),
        (["run", "URL", "FILES", "--lock-timeout", "-1"], 2, "is not a number of seconds"),
        (
            ["run", "mysql://u@127.0.0.1:1/x", "FILES", "--password-file", "/no/such/file"],
            2,
            "cannot read the password file",
        ),
        (["run", "URL", "FILES", "--password-file", "/no/such/file"], 2, "has no password"),
        (["run"], 2, "required"),
        ([], 2, "required"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    arguments: list[str], code: int, words: str, files: Path, sqlite: str
) -> None:
    result = migrate(*({"URL": sqlite, "FILES": str(files)}.get(argument, argument) for argument in arguments))
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_lock_that_is_not_free_in_time_is_75_and_names_the_holder(files: Path, database: Database) -> None:
    holder = database.connect()
    with holder.cursor() as cursor:
        take_lock(cursor, "r_migration")
        result = migrate(
            "run", database.url, str(files), "--lock-name", "r_migration", "--lock-timeout", "0.1", "--json"
        )
    holder.close()
    assert result.returncode == 75
    assert f"is held by connection {holder.thread_id()} (root from" in result.stderr
    assert json.loads(result.stdout)["lock_holder"]["connection_id"] == holder.thread_id()
    assert database.query("SHOW TABLES") == []


def test_what_a_person_must_look_at_is_70(files: Path, database: Database) -> None:
    (files / "003_c.sql").write_text(
        "DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 1; SELECT * FROM no_such_table; END//\nCALL p()//\n"
    )
    assert migrate("run", database.url, str(files)).returncode == 1
    result = migrate("run", database.url, str(files))
    assert result.returncode == 70
    assert "--resume-at 003_c.sql:2" in result.stderr
    done = migrate("run", database.url, str(files), "--resume-at", "003_c.sql:3")
    assert done.returncode == 0, done.stderr


def test_two_passwords_are_an_error_that_names_both(files: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    two = {"SHAREDVOL_DATABASE_PASSWORD": "other", "SHAREDVOL_DATABASE_PASSWORD_FILE": str(secret)}
    done = migrate("run", "mysql://root@127.0.0.1:1/none", str(files), **two)
    assert done.returncode == 2
    assert "SHAREDVOL_DATABASE_PASSWORD and SHAREDVOL_DATABASE_PASSWORD_FILE are both set: leave one out" in done.stderr
    given = migrate("run", "mysql://root@127.0.0.1:1/none", str(files), "--password-file", str(secret), **two)
    assert given.returncode == 69


@pytest.mark.parametrize("way", ["variable", "file", "file variable", "env url"])
def test_the_password_is_read_from_elsewhere_and_never_shown(
    way: str, files: Path, database: Database, tmp_path: Path
) -> None:
    user = f"u{database.name[-20:]}"
    quoted = PASSWORD.replace("'", "''")
    database.query(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{quoted}'")
    database.query(f"GRANT ALL ON `{database.name}`.* TO '{user}'@'%'")
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    url = database.url.replace("root@", f"{user}@")
    environment = {}
    arguments = [url, str(files)]
    if way == "variable":
        environment["SHAREDVOL_DATABASE_PASSWORD"] = PASSWORD
    elif way == "file":
        arguments += ["--password-file", str(secret)]
    elif way == "file variable":
        environment["SHAREDVOL_DATABASE_PASSWORD_FILE"] = str(secret)
    else:
        environment = {"OUR_URL": url, "SHAREDVOL_DATABASE_PASSWORD": PASSWORD}
        arguments[0] = "env:OUR_URL"
    try:
        good = migrate("run", *arguments, **environment)
        assert good.returncode == 0, good.stderr
        wrong = migrate("run", url.replace(f"{user}@", f"{user}:{PASSWORD}x@"), str(files))
        assert wrong.returncode in (2, 69)
        assert PASSWORD not in good.stdout + good.stderr + wrong.stdout + wrong.stderr
    finally:
        database.query(f"DROP USER '{user}'@'%'")


def test_on_a_terminal_each_statement_is_shown(files: Path, sqlite: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sharedvol.cli", "migrate", "run", sqlite, str(files)],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # EIO: the other side is closed
    finally:
        os.close(ours)
        assert process.wait(LIMIT) == 0
    assert b"[1/2] 001_a.sql: statement 2/2 (line 2, INSERT INTO a)" in shown
    assert b"[2/2] 002_b.sql: 0 statements in" in shown


def test_the_help_teaches(tmp_path: Path) -> None:
    for command in ([], ["run"], ["plan"], ["status"]):
        text = migrate(*command, "--help").stdout
        assert "exit codes:" in text
        assert "SHAREDVOL_DATABASE_PASSWORD_FILE" in text
