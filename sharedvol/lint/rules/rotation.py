"""Rules: logrotate configurations next to the compose file."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sharedvol.lint.compose.node import Position
from sharedvol.lint.project import Mount, Project, Script, Service
from sharedvol.lint.rule import Found, Rule, Severity, rule

_COMPRESSES: Final = {"compress": True, "nocompress": False}
_SCRIPTS: Final = {"postrotate", "prerotate", "firstaction", "lastaction", "preremove"}
_VOLUMES: Final = "/var/lib/docker/volumes"
_VOLUME: Final = re.compile(r"^/.*?/volumes/([^/]+)/_data/")  # the engine's directory may be elsewhere
_PATH: Final = re.compile(r""""([^"]+)"|'([^']+)'|([^\s"']+)""")


@dataclass(frozen=True)
class _Rotation:
    """What a configuration does with some logs.

    Attributes:
        paths: the patterns of the logs.
        at: the place of the last ``compress`` that counts for them; None where they are not compressed.
    """

    paths: Sequence[str]
    at: Position | None


@rule(
    "SV072",
    "logrotate compresses logs that the sidecar follows",
    Severity.warning,
    why="""The sidecar follows a log while it is open. When logrotate compresses the rotated log and deletes it, the
    sidecar gives its copy the final name, and it collects the compressed file as a file of its own. So the lines are
    there twice.""",
    mend="""Set `nocompress` for these logs, and give the sidecar `--compress gzip` or `--compress zstd`: it compresses
    each log when it is finished.""",
)
def compressed_rotation(project: Project) -> Iterator[Found]:
    places = [place for service in project.services if service.is_sidecar for place in _places(project, service)]
    for script in project.scripts if places else ():
        for rotation in _rotations(script):
            followed = [path for path in rotation.paths if any(place.follows(path) for place in places)]
            if rotation.at is not None and followed:
                yield Found(rotation.at, f"logrotate compresses {followed[0]!r}, which the sidecar follows")


@dataclass(frozen=True)
class _Place:
    """A spool under one of its paths.

    Attributes:
        path: where it is, in a container or on the host; a pattern.
        kinds: the directories whose files are followed.
    """

    path: str
    kinds: Sequence[str]

    def follows(self, pattern: str) -> bool:
        """Whether a pattern of logrotate finds logs in it."""
        pattern = _VOLUME.sub(rf"{_VOLUMES}/\1/_data/", pattern)
        parts = pattern.strip("/").split("/")
        if pattern.startswith("$"):
            return any(kind in parts[1:-1] for kind in self.kinds)  # what the variable holds is not known
        above = self.path.strip("/").split("/")
        if not pattern.startswith("/") or not _agree(above, parts):
            return False
        below = parts[len(above) : -1]
        if below and below[0] in self.kinds:
            return True
        # A directory per container, or the kind's own. A wildcard of more directories stands for containers first.
        return bool(below) and any(fnmatch.fnmatchcase(kind, below[:2][-1]) for kind in self.kinds)


def _agree(above: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the first of the parts, patterns on both sides, can be the directories above."""
    return len(parts) > len(above) and all(
        fnmatch.fnmatchcase(one, part) or fnmatch.fnmatchcase(part, one)
        for one, part in zip(above, parts, strict=False)
    )


def _places(project: Project, sidecar: Service) -> Iterator[_Place]:
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


def _paths(project: Project, mount: Mount) -> Iterator[str]:
    """The paths of what is mounted, in all containers and on the host."""
    for service in project.services:
        for other in service.mounts:
            if other.shared and (other.kind, other.source) == (mount.kind, mount.source):
                yield other.target
    if mount.kind == "bind":
        yield mount.source
    elif name := project.volumes[mount.source].get("name").text if mount.source in project.volumes else "":
        yield f"{_VOLUMES}/{name}/_data"
    else:  # the project's name comes before the volume's
        yield f"{_VOLUMES}/*{mount.source}/_data"


def _setting(service: Service, variable: str, option: str) -> str:
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
        if runs:  # a shell script within the configuration
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
        else:  # a block's patterns may be on the lines before its brace
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
