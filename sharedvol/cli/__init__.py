"""The command ``sharedvol``."""

from sharedvol.cli.main import main

__all__ = ["main"]
