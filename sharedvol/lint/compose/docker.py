"""What ``docker compose config`` makes of the files, given the places that the files themselves tell."""

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
PATIENCE: Final = 30.0  # seconds for all of it: Compose may fetch what is included
MAX_OUTPUT: Final = 20_000_000
# What a docker without the plug-in says of `docker compose -f`.
_WITHOUT_PLUGIN: Final = re.compile(r"'compose' is not a docker command|unknown shorthand flag: 'f'|unknown flag: --")


class NoCompose(Exception):
    """There is none, or it does not answer; the text says why."""


def config(
    files: Sequence[str], env_files: Sequence[str] = (), profiles: Sequence[str] = ("*",), patience: float = PATIENCE
) -> tuple[object, str]:
    """The project as Compose reads it, and the command that said so.

    Raises:
        NoCompose: no Compose is there, or it refuses the files.
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
    raise NoCompose("there is no docker compose here")


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
            said = errors.read(20_000).decode(errors="replace").strip().splitlines()
            if line[0] == "docker" and any(_WITHOUT_PLUGIN.search(one) for one in said):
                raise FileNotFoundError(line[0])
            raise NoCompose(said[-1] if said else f"{line[0]} ended with {code}")
        if os.fstat(out.fileno()).st_size > MAX_OUTPUT:
            raise NoCompose(f"{line[0]} prints more than {MAX_OUTPUT:,} bytes")
        try:
            found: object = json.loads(out.read())
        except (ValueError, RecursionError):
            raise NoCompose(f"{line[0]} prints no JSON") from None
    if not isinstance(found, dict):
        raise NoCompose(f"{line[0]} prints no project")
    return found


def placed(found: object, own: Node) -> Node:
    """``found`` with the places, and the texts before interpolation, of the same things in ``own``.

    What Compose leaves out of its answer, the fields ``x-…``, is taken from ``own``.
    """
    return _placed(found, own, own, "")


def _placed(found: object, own: Node, outer: Node, name: str) -> Node:
    at = own.at if own is not EMPTY else outer.at
    if isinstance(found, dict):
        children = {
            str(key): _placed(child, own.map.get(str(key), EMPTY), own if own is not EMPTY else outer, str(key))
            for key, child in found.items()
        }
        extensions = {key: child for key, child in own.map.items() if key.startswith("x-") and key not in children}
        return Node({**children, **extensions}, at)
    if isinstance(found, list):
        return Node(_placed_items(found, own, outer, name), at)
    raw = own.raw if not isinstance(own.value, dict | list) else ""
    if isinstance(found, str):
        return Node(found.replace("$$", "$"), at, raw)  # Compose prints what would be read as the same again
    return Node(found if isinstance(found, int | float | bool) else None, at, raw)


def _placed_items(found: list[object], own: Node, outer: Node, name: str) -> list[Node]:
    known = {key: one for one in own.items if (key := identity(name, one)) is not None}
    same = len(found) == len(own.items)
    items = []
    for index, child in enumerate(found):
        bare = _placed(child, EMPTY, own if own is not EMPTY else outer, name)
        match = known.get(identity(name, bare)) or (own.items[index] if same else EMPTY)
        items.append(_placed(child, match, own if own is not EMPTY else outer, name))
    return items
