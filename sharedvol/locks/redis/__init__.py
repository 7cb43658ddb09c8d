"""Locks on Redis servers."""

from sharedvol.locks.redis.lock import RedisLock

__all__ = ["RedisLock"]
