"""Replicas that share a volume: who is alive, names and slots."""

from sharedvol.volume.volume import Volume

__all__ = ["Volume"]
