"""Rules for logrotate configurations."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sharedvol.lint.compose.node import Position
from sharedvol.lint.project import ComposeService, Project, Script, ServiceMount
from sharedvol.lint.rule import Rule, Severity, Violation, rule

_COMPRESSES: Final = {"compress": True, "nocompress": False}
_SCRIPTS: Final = {"postrotate", "prerotate", "firstaction", "lastaction", "preremove"}
_VOLUMES: Final = "/var/lib/docker/volumes"
_VOLUME: Final = re.compile(r"^/.*?/volumes/([^/]+)/_data/")  # the engine's directory may be elsewhere
_PATH: Final = re.compile(r""""([^"]+)"|'([^']+)'|([^\s"']+)""")


@dataclass(frozen=True)
class _Rotation:
    """How a configuration treats some logs.

    Attributes:
        paths: the patterns of the logs.
        at: the position of the last ``compress`` that applies to them; None if they are not compressed.
    """

    paths: Sequence[str]
    at: Position | None


@rule(
    "SV072",
    "logrotate compresses logs that the sidecar follows",
    Severity.warning,
    why="""The sidecar follows a log while it is open. When logrotate compresses the rotated log and deletes it, the
    sidecar gives its copy the final name, and also collects the compressed file. So all lines are collected
    twice.""",
    mend="""Set `nocompress` for these logs, and run the sidecar with `--compress gzip` or `--compress zstd`, which
    compresses each log when it is finished.""",
)
def compressed_rotation(project: Project) -> Iterator[Violation]:
    places = [place for service in project.services if service.is_sidecar for place in _places(project, service)]
    for script in project.scripts if places else ():
        for rotation in _rotations(script):
            followed = [path for path in rotation.paths if any(place.follows(path) for place in places)]
            if rotation.at is not None and followed:
                yield Violation(rotation.at, f"logrotate compresses {followed[0]!r}, which the sidecar follows")


@dataclass(frozen=True)
class _Place:
    """A spool under one of its paths.

    Attributes:
        path: a pattern of its path, in a container or on the host.
        kinds: the directories whose files are followed.
    """

    path: str
    kinds: Sequence[str]

    def follows(self, pattern: str) -> bool:
        """Return whether a pattern of logrotate matches logs in it."""
        pattern = _VOLUME.sub(rf"{_VOLUMES}/\1/_data/", pattern)
        parts = pattern.strip("/").split("/")
        if pattern.startswith("$"):
            return any(kind in parts[1:-1] for kind in self.kinds)  # the variable's value is unknown
        above = self.path.strip("/").split("/")
        if not pattern.startswith("/") or not _agree(above, parts):
            return False
        below = parts[len(above) : -1]
        if below and below[0] in self.kinds:
            return True
        # The directory is one per container, or that of the kind. A wildcard matches containers first.
        return bool(below) and any(fnmatch.fnmatchcase(kind, below[:2][-1]) for kind in self.kinds)


def _agree(above: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether the first parts can match the directories above. Both sides may be patterns."""
    return len(parts) > len(above) and all(
        fnmatch.fnmatchcase(one, part) or fnmatch.fnmatchcase(part, one)
        for one, part in zip(above, parts, strict=False)
    )


def _places(project: Project, sidecar: ComposeService) -> Iterator[_Place]:
    start = _setting(sidecar, "SHAREDVOL_FROM", "--from")
    follow = _setting(sidecar, "SHAREDVOL_FOLLOW", "--follow") or "logs"
    kinds = [kind.strip() for kind in follow.split(",") if kind.strip()]
    mount = sidecar.mount_of(start) if start else None
    mounts = [mount] if mount is not None else [one for one in sidecar.mounts if one.shared and not start]
    for one in mounts:
        below = start[len(one.target.rstrip("/")) :] if start else ""
        for path in _paths(project, one):
            yield _Place(path.rstrip("/") + below, kinds)
    if start and mount is None:
        yield _Place(start, kinds)


def _paths(project: Project, mount: ServiceMount) -> Iterator[str]:
    """Yield the paths of the mounted volume or directory in all containers and on the host."""
    for service in project.services:
        for other in service.mounts:
            if other.shared and (other.kind, other.source) == (mount.kind, mount.source):
                yield other.target
    if mount.kind == "bind":
        yield mount.source
    elif name := project.volumes[mount.source].get("name").text if mount.source in project.volumes else "":
        yield f"{_VOLUMES}/{name}/_data"
    else:  # Compose puts the project's name before the volume's
        yield f"{_VOLUMES}/*{mount.source}/_data"


def _setting(service: ComposeService, variable: str, option: str) -> str:
    words = [word.text for word in service.words]
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else "".join(words[number + 1 : number + 2])
    return service.environment[variable].text if variable in service.environment else ""


def _rotations(script: Script) -> Iterator[_Rotation]:
    everywhere: Position | None = None
    paths: list[str] = []
    waiting: list[str] = []
    here: Position | None = None
    runs = False
    for number, line in enumerate(script.text.split("\n"), 1):
        bare = re.sub(r"(?:^|\s)#.*", "", line)
        word = bare.strip()
        if runs:  # inside a shell script in the configuration
            runs = word != "endscript"
        elif word in _SCRIPTS:
            runs = bool(paths)
        elif word in _COMPRESSES:
            at = Position(script.name, number, len(bare) - len(bare.lstrip()) + 1) if _COMPRESSES[word] else None
            everywhere, here = (everywhere, at) if paths else (at, at)
        elif paths:
            if word == "}":
                yield _Rotation(paths, here)
                paths = []
        else:  # the patterns of a block may be on the lines before its brace
            is_head = word.endswith("{")
            words = _words(word.removesuffix("{"))
            if all("/" in one for one in words) and (words or is_head):
                waiting += words
            else:
                waiting = []
            if is_head:
                paths, waiting, here = waiting, [], everywhere


def _words(text: str) -> list[str]:
    return ["".join(match) for match in _PATH.findall(text)]


RULES: Final[tuple[Rule, ...]] = (compressed_rotation,)
