"""Make a Docker volume safe to share between container replicas."""

from sharedvol.errors import (
    AlreadyPublishedError,
    IdentityError,
    InvalidNameError,
    LockDeadlockError,
    LockError,
    LockFileError,
    LockTimeout,
    NotLockedError,
    PublishError,
    SharedVolError,
)
from sharedvol.identity import Identity, container_id, whoami, worker_token
from sharedvol.locks import FileLock
from sharedvol.paths import ParsedName, container_path, log_path, parse_name, unique_path
from sharedvol.publish import publish, remove_stale_temporaries, stale_temporaries

__version__ = "0.1.0"

__all__ = [
    "AlreadyPublishedError",
    "FileLock",
    "Identity",
    "IdentityError",
    "InvalidNameError",
    "LockDeadlockError",
    "LockError",
    "LockFileError",
    "LockTimeout",
    "NotLockedError",
    "ParsedName",
    "PublishError",
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
