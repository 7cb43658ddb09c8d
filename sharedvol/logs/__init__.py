"""Log files of replicas."""

from sharedvol.logs.handler import ReplicaFileHandler

__all__ = ["ReplicaFileHandler"]
