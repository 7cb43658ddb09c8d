"""Locks on MySQL and MariaDB servers."""

from sharedvol.locks.mysql.get_lock import Waiting
from sharedvol.locks.mysql.lock import NamedLock
from sharedvol.locks.mysql.server import LockHolder

__all__ = ["LockHolder", "NamedLock", "Waiting"]
