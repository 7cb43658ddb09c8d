"""What the subcommands share: their parsers, types of arguments, and errors."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from sharedvol.cli.terminal import Parser, write_error

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The collection that a subcommand is added to."""


def add_command(parent: Commands | None, name: str, about: str, epilog: str) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser. Without a parent, return the parser of the whole command."""
    form = argparse.RawDescriptionHelpFormatter
    if parent is None:
        return Parser(prog=name, description=about, epilog=epilog, formatter_class=form)
    summary = about.partition("\n")[0].rstrip(".:")
    return parent.add_parser(name, help=summary, description=about, epilog=epilog, formatter_class=form)


def seconds(text: str) -> float:
    """Read an argument in seconds, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: give 0 or more")
    return number


def fail(message: str, code: int) -> int:
    """Print an error and return the exit code."""
    write_error(message)
    return code
