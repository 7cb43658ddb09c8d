"""How a replica migrates at its start, with each tool; what it raises is a failed start."""

from __future__ import annotations

import contextlib
from typing import Any

from bench.scripts import Scripts, statements


def ours(url: str, scripts: Scripts) -> None:
    from sharedvol import MigrationCoordinator

    MigrationCoordinator(_plain(url), scripts.plain, lock_timeout=100).run()


def fixed(url: str, scripts: Scripts) -> None:
    """The scheme of the R services: look, take one literal name for 30 s, look again, apply, record."""
    with contextlib.closing(_connect(url)) as connection, connection.cursor() as cursor:
        names = sorted(path.name for path in scripts.plain.iterdir())
        if not set(names) - _applied(cursor):
            return
        cursor.execute("SELECT GET_LOCK('schema_migration', 30)")
        if cursor.fetchone()[0] != 1:
            raise RuntimeError("Failed to acquire migration lock: timed out")
        try:
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (filename VARCHAR(255) PRIMARY KEY, "
                "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
            )
            done = _applied(cursor)
            for number, name in enumerate(names):
                if name not in done:
                    for statement in statements(number):
                        cursor.execute(statement)
                    cursor.execute("INSERT INTO schema_version (filename) VALUES (%s)", (name,))
        finally:
            cursor.execute("SELECT RELEASE_LOCK('schema_migration')")


def _applied(cursor: Any) -> set[str]:
    cursor.execute("SHOW TABLES LIKE 'schema_version'")
    if not cursor.fetchall():
        return set()
    cursor.execute("SELECT filename FROM schema_version WHERE success = TRUE")
    return {row[0] for row in cursor.fetchall()}


def alembic(url: str, scripts: Scripts) -> None:
    """``alembic upgrade head``, with the ``env.py`` that ``alembic init`` makes."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts.revisions))
    config.set_main_option("sqlalchemy.url", _plain(url))
    command.upgrade(config, "head")


def alembic_under_ours(url: str, scripts: Scripts) -> None:
    """The same revisions, run by our coordinator."""
    from alembic.config import Config

    from sharedvol import MigrationCoordinator
    from sharedvol.migrations import AlembicMigrations

    config = Config()
    config.set_main_option("script_location", str(scripts.shared))
    MigrationCoordinator(_plain(url), AlembicMigrations(config), lock_timeout=100).run()


def yoyo(url: str, scripts: Scripts) -> None:
    """As its documentation shows it, with its own lock and that lock's time-out of 10 s."""
    from yoyo import get_backend, read_migrations

    address = _url(url)
    backend = get_backend(f"mysql://{address.username}@{address.host}:{address.port}/{address.database}?ssl_disabled=1")
    migrations = read_migrations(str(scripts.plain))
    try:
        with backend.lock():
            backend.apply_migrations(backend.to_apply(migrations))
    finally:
        backend.connection.close()


def _plain(url: str) -> str:
    """Without TLS, for which the driver reads the machine's certificates anew at each connection."""
    return f"{url}&ssl_disabled=true"


def _url(url: str) -> Any:
    from sqlalchemy import make_url

    return make_url(url)


def _connect(url: str) -> Any:
    import pymysql

    address = _url(url)
    return pymysql.connect(
        host=address.host,
        port=address.port,
        user=address.username,
        database=address.database,
        autocommit=True,
        ssl_disabled=True,
    )
