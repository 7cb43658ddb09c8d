"""Migrations that run once, however many replicas start."""

from sharedvol.migrations.alembic import AlembicMigrations
from sharedvol.migrations.coordinator import MigrationCoordinator
from sharedvol.migrations.functions import PythonMigrations
from sharedvol.migrations.manifest import Manifest
from sharedvol.migrations.script import split_script
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
