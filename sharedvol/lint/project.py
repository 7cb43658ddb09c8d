"""The project that rules check: services with their replicas and mounts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sharedvol.lint.compose.node import EMPTY, Node, Position
from sharedvol.lint.compose.normalize import command

_DATABASES: Final = (
    "mysql",
    "mariadb",
    "percona",
    "postgres",
    "postgis",
    "pgvector",
    "timescaledb",
    "mongo",
    "mssql",
    "oracle",
)
_ALONE: Final = (
    "traefik",
    "nginx",
    "haproxy",
    "caddy",
    "envoy",
    "redis",
    "valkey",
    "rabbitmq",
    "kafka",
    "memcached",
    "minio",
)
_SIDECAR: Final = "sharedvol-sidecar"
SIDECAR_USER: Final = "65532:65532"


@dataclass(frozen=True)
class ServiceMount:
    """A volume, bind mount or tmpfs of a service.

    Attributes:
        kind: ``volume``, ``bind``, ``tmpfs`` or another type that Compose knows.
        source: the volume's name or the host's path; empty for an anonymous volume.
        target: the path in the container.
        read_only: whether it is mounted read-only.
        nocopy: whether the image's files are not copied into it.
        at: its position.
        raw: the host's path as it is in the file.
    """

    kind: str
    source: str
    target: str
    read_only: bool
    nocopy: bool
    at: Position
    raw: str = ""

    @property
    def shared(self) -> bool:
        """Whether all replicas see the same files in it."""
        return self.kind == "bind" or (self.kind == "volume" and bool(self.source))

    def holds(self, path: str) -> bool:
        """Return whether ``path`` is in it."""
        return bool(self.target) and (path == self.target or path.startswith(self.target.rstrip("/") + "/"))


@dataclass(frozen=True)
class Script:
    """A script to check."""

    name: str
    text: str


@dataclass(frozen=True)
class Host:
    """The machine that the project runs on.

    Attributes:
        memory: bytes; None if unknown.
        given: whether the user gave it, instead of lint reading it from its own machine.
    """

    memory: int | None = None
    given: bool = False


class ComposeService:
    """A service and how many replicas it has.

    Args:
        project: the project that it belongs to.
        name: its name in the file.
        node: its definition in the long form.
        replicas: the number on the command line, which overrides the file.
        ends: whether other services wait until it has ended.
    """

    def __init__(
        self, project: Project, name: str, node: Node, replicas: int | None = None, *, ends: bool = False
    ) -> None:
        self.project, self.name, self.node, self.at, self.ends = project, name, node, node.at, ends
        self._replicas = replicas

    @cached_property
    def replicas(self) -> int:
        """The number of replicas."""
        if self._replicas is not None:
            return self._replicas
        places = (self.node.get("deploy", "replicas"), self.node.get("scale"), self.declared("replicas"))
        return max([number for one in places if (number := one.number) is not None], default=1)

    @property
    def replicated(self) -> bool:
        """Whether it has more than one replica."""
        return self.replicas > 1

    @property
    def grows(self) -> bool:
        """Whether it may be scaled one day: not a database, not a proxy, not run once, and not declared ``single``."""
        settled = self.ends or self.is_database or _is_one_of(self.image, _ALONE)
        return not (settled or self.declared("single").present)

    def declared(self, name: str) -> Node:
        """Return the value of ``x-sharedvol: {name: …}`` or the label ``sharedvol.name``, or an empty one."""
        found = self.node.get("x-sharedvol", name)
        return found if found.present else self.labels.get(f"sharedvol.{name}", EMPTY)

    @cached_property
    def labels(self) -> Mapping[str, Node]:
        """The labels of the service and of its deployment."""
        return {**self.node.get("deploy", "labels").map, **self.node.get("labels").map}

    @property
    def environment(self) -> Mapping[str, Node]:
        """The environment variables."""
        return self.node.get("environment").map

    @property
    def image(self) -> str:
        """The name of the image."""
        return self.node.get("image").text

    @cached_property
    def words(self) -> Sequence[Node]:
        """The words of the entry point and the command."""
        return (*command(self.node.get("entrypoint")).items, *command(self.node.get("command")).items)

    @cached_property
    def line(self) -> str:
        """The entry point and the command as one line."""
        return " ".join(word.text for word in self.words)

    @property
    def line_at(self) -> Position:
        """The position of the command or the entry point."""
        for name in ("command", "entrypoint"):
            if self.node.get(name).present:
                return self.node.get(name).at
        return self.at

    @cached_property
    def mounts(self) -> Sequence[ServiceMount]:
        """The mounts."""
        return tuple(self._mounts())

    def _mounts(self) -> Iterator[ServiceMount]:
        for one in self.node.get("volumes").items:
            kind = one.get("type").text or "volume"
            source = one.get("source")
            if one.get("target").text:
                yield ServiceMount(
                    kind,
                    source.text,
                    one.get("target").text,
                    one.get("read_only").true,
                    one.get("volume", "nocopy").true,
                    one.at,
                    source.raw or source.text,
                )
        for one in self.node.get("tmpfs").items:
            if one.text:
                yield ServiceMount("tmpfs", "", one.text.partition(":")[0], False, False, one.at)

    def mount_of(self, path: str) -> ServiceMount | None:
        """Return the deepest mount that contains ``path``, or None."""
        holding = [mount for mount in self.mounts if mount.holds(path)]
        return max(holding, key=lambda mount: len(mount.target), default=None)

    @property
    def is_database(self) -> bool:
        """Whether the image is that of a database."""
        return _is_one_of(self.image, _DATABASES)

    @cached_property
    def is_sidecar(self) -> bool:
        """Whether it is sharedvol's sidecar."""
        if self.ends:
            return False
        is_image = _SIDECAR in self.image and not self.node.get("entrypoint").present
        is_set = {"SHAREDVOL_FROM", "SHAREDVOL_TO"} <= self.environment.keys()
        return is_image or is_set or _SIDECAR in self.line or self.declared("sidecar").true

    @cached_property
    def is_routed(self) -> bool:
        """Whether Traefik's Docker provider sends it requests."""
        return any(name.lower().startswith(("traefik.http.", "traefik.tcp.")) for name in self.labels) or any(
            name.lower() == "traefik.enable" and label.true for name, label in self.labels.items()
        )

    def number(self, *names: str) -> tuple[int, Node] | None:
        """Return the first whole number that is declared, or set in the environment, under one of the names.

        Args:
            names: a declaration in lower case, or a variable in capitals.
        """
        for name in names:
            node = self.environment.get(name, EMPTY) if name.isupper() else self.declared(name)
            if (number := node.number) is not None:
                return number, node
        return None


def _is_one_of(image: str, names: Sequence[str]) -> bool:
    """Return whether the image has one of the names, as in ``registry:5000/library/mysql:8.4@sha256:…``."""
    base = image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
    return any(re.fullmatch(rf"{name}(?:[-_].*)?", base) is not None for name in names)


class Project:
    """All services, the volumes, the scripts and the host.

    Args:
        node: the project in the long form.
        replicas: numbers of replicas that override those in the files.
        scripts: the scripts to check.
        host: the machine that the project runs on.
    """

    def __init__(
        self,
        node: Node,
        *,
        replicas: Mapping[str, int] | None = None,
        scripts: Sequence[Script] = (),
        host: Host | None = None,
    ) -> None:
        self.node, self.scripts, self.host = node, tuple(scripts), host or Host()
        given = replicas or {}
        ended = {
            name
            for body in node.get("services").map.values()
            for name, wait in body.get("depends_on").map.items()
            if wait.get("condition").text == "service_completed_successfully"
        }
        self.services = tuple(
            ComposeService(self, name, body, given.get(name), ends=name in ended)
            for name, body in node.get("services").map.items()
            if isinstance(body.value, dict)
        )
        self.volumes: Mapping[str, Node] = node.get("volumes").map

    @property
    def replicated(self) -> Sequence[ComposeService]:
        """The services that have more than one replica."""
        return tuple(service for service in self.services if service.replicated)

    def users_of(self, volume: str) -> Sequence[tuple[ComposeService, ServiceMount]]:
        """Return the services that mount a volume, with their mounts."""
        return tuple(
            (service, mount)
            for service in self.services
            for mount in service.mounts
            if mount.kind == "volume" and mount.source == volume
        )
