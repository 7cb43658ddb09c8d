"""Locks on files, between processes and containers of one host."""

from sharedvol.locks.file.lock import FileLock

__all__ = ["FileLock"]
