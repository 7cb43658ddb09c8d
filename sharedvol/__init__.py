"""Make a Docker volume safe to share between container replicas."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharedvol.errors import (
    AheadError,
    AlreadyPublishedError,
    CacheError,
    CacheTimeout,
    CacheValueError,
    DatabaseError,
    DriftError,
    DuplicateReplicaError,
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
    NetworkFileSystemError,
    NetworkFileSystemWarning,
    NotJoinedError,
    NotLockedError,
    PresenceError,
    PublishError,
    ReplicaAliveError,
    ScriptError,
    SharedVolError,
)
from sharedvol.identity import Identity, container_id, whoami, worker_token
from sharedvol.locks import FileHolder, FileLock, Holder, Lock, Semaphore, open_lock, watch
from sharedvol.paths import ParsedName, container_path, log_path, parse_name, unique_path
from sharedvol.publishing import publish, remove_stale_temporaries, stale_temporaries
from sharedvol.volume import Volume
from sharedvol.volume.membership import Membership
from sharedvol.volume.record import Replica

if TYPE_CHECKING:
    from sharedvol.cache import Cache
    from sharedvol.integrations import Service
    from sharedvol.logs import ReplicaFileHandler
    from sharedvol.migrations import MigrationCoordinator, MigrationFailed, MigrationStatus

__version__ = "0.1.0"

__all__ = [
    "AheadError",
    "AlreadyPublishedError",
    "Cache",
    "CacheError",
    "CacheTimeout",
    "CacheValueError",
    "DatabaseError",
    "DriftError",
    "DuplicateReplicaError",
    "FileHolder",
    "FileLock",
    "HalfAppliedError",
    "Holder",
    "Identity",
    "IdentityError",
    "InvalidNameError",
    "LedgerError",
    "Lock",
    "LockDeadlockError",
    "LockError",
    "LockFileError",
    "LockLostError",
    "LockTimeout",
    "LockUnsafeError",
    "ManifestError",
    "Membership",
    "MigrationCoordinator",
    "MigrationError",
    "MigrationFailed",
    "MigrationStatus",
    "NetworkFileSystemError",
    "NetworkFileSystemWarning",
    "NotJoinedError",
    "NotLockedError",
    "ParsedName",
    "PresenceError",
    "PublishError",
    "Replica",
    "ReplicaAliveError",
    "ReplicaFileHandler",
    "ScriptError",
    "Semaphore",
    "Service",
    "SharedVolError",
    "Volume",
    "container_id",
    "container_path",
    "log_path",
    "open_lock",
    "parse_name",
    "publish",
    "remove_stale_temporaries",
    "stale_temporaries",
    "unique_path",
    "watch",
    "whoami",
    "worker_token",
]


_LATER = {
    "Cache": "cache",
    "MigrationCoordinator": "migrations",
    "MigrationFailed": "migrations",
    "MigrationStatus": "migrations",
    "ReplicaFileHandler": "logs",
    "Service": "integrations",
}
"""What is imported when it is first used, because not every program uses it: the name, and the module that has it."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
