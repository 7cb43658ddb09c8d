"""Make a Docker volume safe to share between container replicas."""

from sharedvol.errors import (
    AheadError,
    AlreadyPublishedError,
    DatabaseError,
    DriftError,
    HalfAppliedError,
    IdentityError,
    InvalidNameError,
    LedgerError,
    LockDeadlockError,
    LockError,
    LockFileError,
    LockLostError,
    LockTimeout,
    LockUnsafeError,
    ManifestError,
    MigrationError,
    NotLockedError,
    PublishError,
    ScriptError,
    SharedVolError,
)
from sharedvol.identity import Identity, container_id, whoami, worker_token
from sharedvol.locks import FileLock
from sharedvol.migrations import MigrationCoordinator, MigrationFailed, MigrationStatus
from sharedvol.paths import ParsedName, container_path, log_path, parse_name, unique_path
from sharedvol.publish import publish, remove_stale_temporaries, stale_temporaries

__version__ = "0.1.0"

__all__ = [
    "AheadError",
    "AlreadyPublishedError",
    "DatabaseError",
    "DriftError",
    "FileLock",
    "HalfAppliedError",
    "Identity",
    "IdentityError",
    "InvalidNameError",
    "LedgerError",
    "LockDeadlockError",
    "LockError",
    "LockFileError",
    "LockLostError",
    "LockTimeout",
    "LockUnsafeError",
    "ManifestError",
    "MigrationCoordinator",
    "MigrationError",
    "MigrationFailed",
    "MigrationStatus",
    "NotLockedError",
    "ParsedName",
    "PublishError",
    "ScriptError",
    "SharedVolError",
    "container_id",
    "container_path",
    "log_path",
    "parse_name",
    "publish",
    "remove_stale_temporaries",
    "stale_temporaries",
    "unique_path",
    "whoami",
    "worker_token",
]
