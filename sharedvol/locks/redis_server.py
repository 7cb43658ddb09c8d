"""The former module of `sharedvol.locks.redis.RedisHolder`, for one release."""

from sharedvol.locks.redis.server import RedisHolder

__all__ = ["RedisHolder"]
