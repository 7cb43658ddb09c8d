"""Locks on MySQL and MariaDB servers."""

from sharedvol.locks.mysql.lock import NamedLock

__all__ = ["NamedLock"]
