"""The command ``sharedvol``: a module for each subcommand."""

from sharedvol.cli.main import main

__all__ = ["main"]
