"""Migrations that run once, however many replicas start."""

from sharedvol.migrations.coordinator import MigrationCoordinator
from sharedvol.migrations.manifest import Manifest
from sharedvol.migrations.sources.alembic import AlembicMigrations
from sharedvol.migrations.sources.functions import PythonMigrations
from sharedvol.migrations.sql.mysql_script import split_script
from sharedvol.migrations.status import HalfApplied, MigrationFailed, MigrationStatus, Step, Survey

__all__ = [
    "AlembicMigrations",
    "HalfApplied",
    "Manifest",
    "MigrationCoordinator",
    "MigrationFailed",
    "MigrationStatus",
    "PythonMigrations",
    "Step",
    "Survey",
    "split_script",
]
