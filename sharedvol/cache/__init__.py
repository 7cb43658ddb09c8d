"""Values that replicas compute once and share in files on a volume. Start with `Cache`."""

from sharedvol.cache.cache import Cache
from sharedvol.cache.codecs import BYTES, JSON, PICKLE, TEXT, Codec
from sharedvol.cache.keys import Key
from sharedvol.cache.statistics import Statistics, Trimmed

__all__ = ["BYTES", "JSON", "PICKLE", "TEXT", "Cache", "Codec", "Key", "Statistics", "Trimmed"]
