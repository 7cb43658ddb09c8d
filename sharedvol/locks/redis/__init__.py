"""Locks on Redis servers."""

from sharedvol.locks.redis.lock import RedisLock
from sharedvol.locks.redis.server import RedisHolder

__all__ = ["RedisHolder", "RedisLock"]
