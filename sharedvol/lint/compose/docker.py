"""The output of ``docker compose config``, combined with the positions in the files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

from sharedvol.lint.compose.node import EMPTY, Node
from sharedvol.lint.compose.normalize import identity

COMMANDS: Final = (("docker", "compose"), ("docker-compose",))
PATIENCE: Final = 30.0  # seconds for the whole run, because Compose may fetch included files
MAX_OUTPUT: Final = 20_000_000
# A docker without the plug-in answers `docker compose -f` with one of these errors.
_WITHOUT_PLUGIN: Final = re.compile(r"'compose' is not a docker command|unknown shorthand flag: 'f'|unknown flag: --")


class NoCompose(Exception):
    """Docker Compose is not installed, does not answer, or refuses the files. The text says which."""


def read_config(
    files: Sequence[str], env_files: Sequence[str] = (), profiles: Sequence[str] = ("*",), patience: float = PATIENCE
) -> tuple[object, str]:
    """Return the project as Compose reads it, and the command that read it.

    Raises:
        NoCompose: Compose is not installed, does not answer, or refuses the files.
    """
    for command in COMMANDS:
        line = [*command]
        for option, values in (("-f", files), ("--env-file", env_files), ("--profile", profiles)):
            for value in values:
                line += [option, value]
        try:
            return _run([*line, "config", "--format", "json"], patience), " ".join(command)
        except FileNotFoundError:
            continue
    raise NoCompose("docker compose is not installed")


def _run(line: list[str], patience: float) -> object:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, timeout=patience, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise NoCompose(f"{line[0]} did not answer in {patience:g} s") from None
        except PermissionError as error:
            raise NoCompose(f"{line[0]} cannot be run: {error.strerror}") from None
        for file in (out, errors):
            file.seek(0)
        if code != 0:
            printed = errors.read(20_000).decode(errors="replace").strip().splitlines()
            if line[0] == "docker" and any(_WITHOUT_PLUGIN.search(one) for one in printed):
                raise FileNotFoundError(line[0])
            raise NoCompose(printed[-1] if printed else f"{line[0]} ended with {code}")
        if os.fstat(out.fileno()).st_size > MAX_OUTPUT:
            raise NoCompose(f"{line[0]} printed more than {MAX_OUTPUT:,} bytes")
        try:
            found: object = json.loads(out.read())
        except (ValueError, RecursionError):
            raise NoCompose(f"{line[0]} did not print JSON") from None
    if not isinstance(found, dict):
        raise NoCompose(f"{line[0]} did not print a project")
    return found


def with_positions(found: object, own: Node) -> Node:
    """Add the positions, and the texts before interpolation, to the output of Compose.

    Args:
        found: the output of Compose.
        own: the same project, read by the built-in parser. It also supplies the fields ``x-…``, which Compose omits.
    """
    return _with_positions(found, own, own, "")


def _with_positions(found: object, own: Node, outer: Node, name: str) -> Node:
    at = own.at if own is not EMPTY else outer.at
    if isinstance(found, dict):
        children = {
            str(key): _with_positions(child, own.map.get(str(key), EMPTY), own if own is not EMPTY else outer, str(key))
            for key, child in found.items()
        }
        extensions = {key: child for key, child in own.map.items() if key.startswith("x-") and key not in children}
        return Node({**children, **extensions}, at)
    if isinstance(found, list):
        return Node(_items_with_positions(found, own, outer, name), at)
    raw = own.raw if not isinstance(own.value, dict | list) else ""
    if isinstance(found, str):
        return Node(found.replace("$$", "$"), at, raw)  # Compose escapes the dollar sign in its output
    return Node(found if isinstance(found, int | float | bool) else None, at, raw)


def _items_with_positions(found: list[object], own: Node, outer: Node, name: str) -> list[Node]:
    known = {key: one for one in own.items if (key := identity(name, one)) is not None}
    same = len(found) == len(own.items)
    items = []
    for index, child in enumerate(found):
        bare = _with_positions(child, EMPTY, own if own is not EMPTY else outer, name)
        match = known.get(identity(name, bare)) or (own.items[index] if same else EMPTY)
        items.append(_with_positions(child, match, own if own is not EMPTY else outer, name))
    return items
