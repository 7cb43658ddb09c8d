"""Migrations that are Alembic's revisions, run on the connection that holds the lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, ManifestError, MigrationError
from sharedvol.migrations.sources.base import Session
from sharedvol.migrations.status import Step, Survey

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection

_RECIPE = (
    "let its run_migrations_online() use config.attributes['connection'] if that is set "
    '(Alembic cookbook, "Sharing a Connection across one or more programmatic migration commands")'
)


class AlembicMigrations:
    """``alembic upgrade heads`` for `sharedvol.MigrationCoordinator`. Needs the extra ``alembic``.

    ::

        MigrationCoordinator("mysql://app@db/shop", AlembicMigrations("alembic.ini")).run()

    Alembic records what is applied in its own table. The environment (``env.py``) must run the migrations on
    ``config.attributes["connection"]``, which is the connection that holds the lock. An environment that opens another
    connection is refused before anything runs.

    Args:
        config: the path of ``alembic.ini``, or an ``alembic.config.Config``. With a path, the logging settings in the
            file are ignored, so that the application's own settings stay.
    """

    def __init__(self, config: str | os.PathLike[str] | Config) -> None:
        self._given = config
        self.label = os.fspath(config) if isinstance(config, str | os.PathLike) else str(config.config_file_name)
        self._revisions: list[str] = []

    def load(self) -> list[str]:
        """Return the revisions, from the first to the last.

        Raises:
            ManifestError: Alembic is missing, or cannot read its files.
        """
        try:
            from alembic.util import CommandError
        except ModuleNotFoundError as error:
            raise ManifestError("Alembic is not installed: install sharedvol[alembic]") from error
        if isinstance(self._given, str | os.PathLike) and not os.path.isfile(self._given):
            raise ManifestError(f"Alembic's configuration {os.fspath(self._given)!r} does not exist")
        try:
            found = [script.revision for script in self._scripts(self._config()).walk_revisions()]
        except CommandError as error:
            raise ManifestError(f"Alembic cannot read its revisions ({self.label}): {error}") from error
        self._revisions = found[::-1]
        return list(self._revisions)

    def survey(self, database: Database) -> Survey:
        """Return which revisions are pending. Changes nothing, and does not create Alembic's table."""
        with database.sqlalchemy() as connection:
            heads = self._heads(connection)
        return self._surveyed(heads)

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        """Upgrade to all heads. Yield each revision once it is applied.

        Raises:
            DatabaseError, MigrationError: a revision failed.
        """
        from alembic import command

        names = list(survey.pending)
        for number, name in enumerate(names, 1):
            session.report(Step("started", name, number, len(names), 0, 1))
            try:
                with session.database.sqlalchemy() as connection:
                    config = self._config()
                    config.attributes["connection"] = connection
                    command.upgrade(config, name)
                    connection.commit()
            except Exception as error:
                raise _translated(error, name) from error
            session.report(Step("applied", name, number, len(names), 1, 1))
            yield name

    def _surveyed(self, heads: tuple[str, ...]) -> Survey:
        known = [head for head in heads if head in self._revisions]
        ahead = [head for head in heads if head not in self._revisions]
        scripts = self._scripts(self._config())
        done = {script.revision for script in scripts.iterate_revisions(tuple(known), "base")} if known else set()
        # A database that is ahead of the image has everything that the image has.
        pending = [] if ahead else [name for name in self._revisions if name not in done]
        return Survey(names=list(self._revisions), pending=pending, ahead=ahead)

    def _heads(self, connection: Connection) -> tuple[str, ...]:
        """Return the revisions of the database, and verify that ``env.py`` uses our connection."""
        from alembic.runtime.environment import EnvironmentContext

        found: list[tuple[str, ...]] = []

        def read(heads: Any, context: MigrationContext) -> list[Any]:
            theirs = context.connection
            ours = connection.connection.driver_connection
            if theirs is None or theirs.connection.driver_connection is not ours:
                raise MigrationError(
                    f"the env.py of {self.label} opens a connection of its own, which does not hold the lock: {_RECIPE}"
                )
            found.append(tuple(heads))
            return []

        config = self._config()
        config.attributes["connection"] = connection
        scripts = self._scripts(config)
        try:
            # `alembic current` also leaves the table alone in this way.
            with EnvironmentContext(config, scripts, fn=_typed(read), dont_mutate=True):
                scripts.run_env()
        except MigrationError:
            raise
        except Exception as error:
            failed = _translated(error, f"the env.py of {self.label} failed")
            failed.args = (f"{failed}; if it opens a connection of its own, {_RECIPE}",)
            raise failed from error
        if not found:
            raise MigrationError(f"the env.py of {self.label} ran no migrations: {_RECIPE}")
        return found[-1]

    def _config(self) -> Config:
        from alembic.config import Config

        if not isinstance(self._given, str | os.PathLike):
            return self._given
        config = Config(os.fspath(self._given))
        _ = (
            config.file_config
        )  # read now, because env.py passes the name, if there is one, to logging.config.fileConfig
        config.config_file_name = None
        return config

    def _scripts(self, config: Config) -> ScriptDirectory:
        from alembic.script import ScriptDirectory

        return ScriptDirectory.from_config(config)


def _translated(error: Exception, name: str) -> DatabaseError | MigrationError:
    import sqlalchemy

    if isinstance(error, sqlalchemy.exc.DBAPIError):
        code = error.orig.args[0] if error.orig and error.orig.args and isinstance(error.orig.args[0], int) else None
        return DatabaseError(f"{name}: {error.orig}", code, lost=error.connection_invalidated)
    return MigrationError(f"{name}: {type(error).__name__}: {error}")


def _typed(read: Callable[..., list[Any]]) -> Any:
    return read
