"""Health: alive while it waits, ready only when nothing is pending, and the answer as R gives it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from support.processes import LIMIT, wait_until
from support.servers import Database

from sharedvol import DatabaseError, MigrationCoordinator, MigrationFailed
from sharedvol.health import Health, health_app


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "001_a.sql").write_text("CREATE TABLE a (id INT PRIMARY KEY);\n")
    return directory


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dev.db'}"


def get(app: Any, path: str, method: str = "GET", **more: Any) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    """One request, spoken as an ASGI server would."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": [], **more}, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body else {}, dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("root_path", "path", "code"),
    [
        ("/api", "/api/health/live", 200),  # as ASGI specifies it
        ("/api", "/health/live", 200),  # behind a proxy that strips the prefix
        ("/api/", "/api//health/live", 200),  # uvicorn --root-path /api/
        ("/api/ops", "/ops/health/live", 200),  # mounted, behind such a proxy
        ("/health", "/health/live", 200),
        ("/health", "/health/health/live", 200),
        ("/api", "/apis/health/live", 404),
        ("/heal", "/health/live", 200),
        ("/api/ops", "/api/health/live", 404),
        ("/api", "/api", 404),
        ("", "/", 404),
    ],
)
def test_the_checks_are_found_however_a_server_reads_root_path(root_path: str, path: str, code: int) -> None:
    assert get(health_app(Health(None)), path, root_path=root_path)[0] == code


def test_a_replica_is_alive_whatever_its_database_does(files: Path) -> None:
    health = Health(MigrationCoordinator("mysql://guest@127.0.0.1:1/none", files))
    assert health.live().ok
    ready = health.ready()
    assert (ready.code, ready.body["reason"]) == (503, "database_unavailable")
    assert "127.0.0.1:1" in ready.body["error"]


def test_ready_after_the_run_and_not_before(files: Path, sqlite: str) -> None:
    coordinator = MigrationCoordinator(sqlite, files)
    health = Health(coordinator, max_age=0)
    before = health.ready()
    assert (before.code, before.body["reason"], before.body["pending"]) == (503, "migrations_pending", ["001_a.sql"])
    coordinator.run()
    after = health.ready()
    assert after.ok
    assert after.body["status"] == "ready"
    assert "reason" not in after.body
    assert after.body["newly_applied"] == 1  # what this replica's run did, not only what a look shows


def test_the_body_has_the_fields_of_the_r_status(files: Path, sqlite: str) -> None:
    coordinator = MigrationCoordinator(sqlite, files)
    coordinator.run()
    body = Health(coordinator).ready().body
    wanted = "pending_migrations total_migrations last_run newly_applied filenames fast_path lock_acquired manifest"
    assert set(wanted.split()) <= set(body)
    assert set(body["manifest"]) == {"ok", "allowed_empty", "count", "expected_latest", "latest"}
    json.dumps(body)


def test_a_failed_migration_is_told_with_its_reason(files: Path, sqlite: str) -> None:
    (files / "002_b.sql").write_text("CREATE TABLE b (id INT);\nCREATE NONSENSE;\n")
    coordinator = MigrationCoordinator(sqlite, files)
    with pytest.raises(MigrationFailed):
        coordinator.run()
    ready = Health(coordinator).ready()
    assert (ready.code, ready.body["reason"]) == (503, "migration_error")
    assert "002_b.sql: statement 2" in ready.body["error"]
    assert ready.body["filenames"] == ["001_a.sql"]


def test_files_that_were_not_expected_make_it_unready(files: Path, sqlite: str) -> None:
    MigrationCoordinator(sqlite, files).run()
    ready = Health(MigrationCoordinator(sqlite, files, expected_latest="002_b.sql")).ready()
    assert (ready.code, ready.body["reason"]) == (503, "migration_error")
    assert ready.body["error"] == "Expected latest migration mismatch: expected 002_b.sql, found 001_a.sql"


def test_an_unreadable_ledger_is_no_lost_database(files: Path, database: Database) -> None:
    database.query("CREATE TABLE schema_version (something INT)")
    ready = Health(MigrationCoordinator(database.url, files)).ready()
    assert (ready.code, ready.body["reason"]) == (503, "migration_error")


def test_who_waits_is_alive_and_not_ready_and_says_for_whom(files: Path, database: Database) -> None:
    holder = database.connect()
    with holder.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK('shared_name', 0), CONNECTION_ID()")
        ((got, connection),) = cursor.fetchall()
        assert got == 1
        waits = threading.Event()
        coordinator = MigrationCoordinator(
            database.url, files, lock_name="shared_name", lock_timeout=LIMIT, observer=lambda step: waits.set()
        )
        health = Health(coordinator)
        runs = threading.Thread(target=coordinator.run)
        runs.start()
        try:
            assert waits.wait(LIMIT)
            ready = health.ready()
            assert (ready.code, ready.body["reason"], ready.body["state"]) == (503, "migrations_pending", "waiting")
            assert ready.body["lock_holder"]["connection_id"] == connection
            assert str(connection) in ready.body["activity"]
            assert health.live().ok
        finally:
            cursor.execute("SELECT RELEASE_LOCK('shared_name')")
            runs.join(LIMIT)
    holder.close()
    assert health.ready().ok


def test_who_migrates_is_not_ready_and_says_at_which_statement(files: Path, sqlite: str) -> None:
    seen = []
    coordinator = MigrationCoordinator(sqlite, files, observer=lambda step: seen.append(health.ready()))
    health = Health(coordinator)
    coordinator.run()
    assert {report.code for report in seen} == {503}
    assert any("statement 1 of 1 (CREATE TABLE a)" in report.body["activity"] for report in seen)


def test_a_crowd_of_checks_asks_the_database_once(files: Path, sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = MigrationCoordinator(sqlite, files)
    coordinator.run()
    asked = []
    status = coordinator.status
    monkeypatch.setattr(coordinator, "status", lambda **options: asked.append(1) or status(**options))
    health = Health(coordinator, max_age=3600, database="always")
    threads = [threading.Thread(target=health.ready) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(asked) == 1


def test_the_app_answers_as_the_checks_do(files: Path, sqlite: str) -> None:
    coordinator = MigrationCoordinator(sqlite, files)
    app = health_app(Health(coordinator, max_age=0))
    assert get(app, "/health/live")[0] == 200
    code, body, headers = get(app, "/health/ready")
    assert (code, body["reason"]) == (503, "migrations_pending")
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"cache-control"] == b"no-store"
    coordinator.run()
    assert get(app, "/health/ready")[:2][0] == 200
    assert get(app, "/health/ready", "HEAD")[:2] == (200, {})
    assert get(app, "/health/ready", "POST")[0] == 405
    assert get(app, "/elsewhere")[0] == 404
    assert get(app, "/api/health/live", root_path="/api")[0] == 200  # mounted below a prefix


def test_the_app_takes_part_in_the_lifespan() -> None:
    app = health_app(Health(MigrationCoordinator("sqlite://", "nowhere")))
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent = []

    async def receive() -> dict[str, str]:
        return next(messages)

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_database_that_says_nothing_stops_neither_check(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedvol.health._PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel accepts the connection, and no program reads
        port = mute.getsockname()[1]
        health = Health(MigrationCoordinator(f"mysql://u@127.0.0.1:{port}/x", files))
        app = health_app(health)
        with ThreadPoolExecutor(50) as pool:
            answers = [pool.submit(health.ready) for _ in range(50)]
            assert get(app, "/health/live")[0] == 200
            reports = [answer.result(LIMIT) for answer in answers]
    assert {(report.code, report.body["reason"]) for report in reports} == {(503, "database_unavailable")}


def test_files_that_are_gone_say_nothing_of_the_database(tmp_path: Path) -> None:
    ready = Health(MigrationCoordinator("mysql://u@127.0.0.1:1/x", tmp_path / "none")).ready()
    assert (ready.body["reason"], ready.body["database"]) == ("migration_error", "unknown")


def test_files_that_were_not_expected_are_told_in_the_manifest(files: Path, sqlite: str) -> None:
    ready = Health(MigrationCoordinator(sqlite, files, expected_min_count=5)).ready()
    assert (ready.body["manifest"]["ok"], ready.body["manifest"]["count"]) == (False, 1)


def test_a_url_that_cannot_be_used_is_a_reason_and_no_crash(files: Path) -> None:
    ready = Health(MigrationCoordinator("mysql://u@127.0.0.1/x?connect_timeout=soon", files)).ready()
    assert (ready.code, ready.body["reason"]) == (503, "migration_error")


def settled(files: Path, url: str) -> None:
    """Another replica has migrated."""
    MigrationCoordinator(url, files).run()


@pytest.mark.parametrize("by", ["its own run", "an answer"])
def test_a_lost_database_takes_no_replica_out_once_nothing_is_pending(files: Path, tmp_path: Path, by: str) -> None:
    url = f"sqlite:///{tmp_path / 'dev.db'}"
    settled(files, url)
    coordinator = MigrationCoordinator(url, files)
    kept, asks = (Health(coordinator, max_age=0, database=when) for when in ("start", "always"))
    if by == "its own run":
        coordinator.run()
    else:
        assert kept.ready().body["database"] == "connected"
    assert asks.ready().ok
    (tmp_path / "dev.db").unlink()
    (tmp_path / "dev.db").mkdir()
    assert (kept.ready().code, kept.ready().body["database"]) == (200, "unknown")
    assert (asks.ready().code, asks.ready().body["reason"]) == (503, "database_unavailable")
    if by == "its own run":  # as a forked worker has it
        assert Health(coordinator).ready().ok
    (files / "002_b.sql").write_text("CREATE TABLE b (id INT PRIMARY KEY);\n")
    assert kept.ready().body["reason"] == "database_unavailable"  # the answer was about other files
    (files / "002_b.sql").unlink()
    assert kept.ready().ok
    with pytest.raises(DatabaseError):
        coordinator.run()
    assert kept.ready().code == 503  # a run that fails is news


def test_the_application_s_engine_is_used_where_no_connection_is_free(files: Path, database: Database) -> None:
    user = f"u{database.name[-8:]}"
    database.query(f"CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS 1")
    database.query(f"GRANT ALL ON {database.name}.* TO {user}@'%'")
    url = database.server.url(database.name, user)
    engine = sqlalchemy.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    try:
        settled(files, database.url)
        coordinator = MigrationCoordinator(url, files)
        alone = Health(coordinator, max_age=0, database="always")
        pooled = Health(coordinator, max_age=0, database="always", engine=engine)
        given = Health(MigrationCoordinator(engine, files), max_age=0, database="always")
        assert pooled.ready().ok and given.ready().ok and pooled.ready().ok
        assert alone.ready().body["reason"] == "database_unavailable"
        with engine.connect() as connection:
            ((number,),) = connection.execute(sqlalchemy.text("SELECT CONNECTION_ID()"))
            report = pooled.ready()
            assert (report.code, report.body["reason"]) == (503, "database_unavailable")
            assert "cannot get a connection of the engine" in report.body["error"]
        database.query(f"KILL {number}")
        assert pooled.ready().ok  # by a new connection
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT @@autocommit")).scalar() == 0
    finally:
        engine.dispose()
        database.query(f"DROP USER {user}@'%'")


def test_a_query_that_hangs_uses_the_last_answer_for_max_age_only(
    files: Path, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedvol.health._PATIENCE_SECONDS", 0.2)
    settled(files, sqlite)
    coordinator = MigrationCoordinator(sqlite, files)
    status, goes_on, asked = coordinator.status, threading.Event(), []

    def hanging(**options: Any) -> Any:
        asked.append(1)
        assert goes_on.wait(LIMIT)
        return status(**options)

    health = Health(coordinator, max_age=0.05, database="always")
    assert health.ready().ok
    monkeypatch.setattr(coordinator, "status", hanging)
    wait_until(lambda: not health.ready().ok, "the end of the last answer")
    report = health.ready()
    assert (report.code, report.body["reason"]) == (503, "database_unavailable")
    assert "has not answered for" in report.body["error"]
    assert len(asked) == 1  # a query that hangs is not followed by another one
    goes_on.set()
    wait_until(lambda: health.ready().ok, "the answer")


def test_a_word_that_is_not_one_of_the_two_is_refused(files: Path, sqlite: str) -> None:
    with pytest.raises(ValueError, match="'start' or 'always'"):
        Health(MigrationCoordinator(sqlite, files), database="never")  # type: ignore[arg-type]
