"""The directive ``{command-help}``: what a command says of itself, and each of its subcommands, as sections."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH = 88
Help = tuple[str, str]
"""A command with its subcommand, and its help."""


def argparse_help(parser: argparse.ArgumentParser) -> Iterator[Help]:
    """The help of a parser and of those below it."""
    yield parser.prog, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from argparse_help(below)


def click_help(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Help]:
    """The help of a command and of those below it."""
    # With the command's own settings: it keeps the help option that its first context named.
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from click_help(found, below, context)


def helps(program: str) -> list[Help]:
    """What ``--help`` prints, for the program and each of its subcommands.

    Raises:
        ValueError: no such program.
    """
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")  # of the build alone: what argparse takes its width from
    if program == "sharedvol":
        from sharedvol.cli.main import _parser

        return list(argparse_help(_parser()))
    if program == "sharedvol-sidecar":
        from sharedvol_sidecar.cli import main

        return list(click_help(main, program))
    raise ValueError(f"{program} is no command of ours")


class CommandHelp(SphinxDirective):
    """One section for each command."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name, text in helps(self.arguments[0]):
            section = nodes.section("", nodes.title(name, "", nodes.literal(name, name)))
            section += nodes.literal_block(text, text, language="text")
            section["names"].append(nodes.fully_normalize_name(name))
            self.state.document.note_implicit_target(section, section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
