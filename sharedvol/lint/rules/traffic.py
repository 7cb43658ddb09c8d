"""Rules: requests that find another replica than the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import Project, Service
from sharedvol.lint.rule import Found, Rule, Severity, of_each, rule

_STICKY: Final = re.compile(r"traefik\.(?:http|tcp)\.services\.[^.]+\.loadbalancer\.sticky(?:\..*)?", re.IGNORECASE)
_STATE: Final = re.compile(
    r"(?:.*_)?(?:UPLOADS?|TUS|CHUNKS?|SESSIONS?|JOBS?|STATE|MEDIA)(?:_(?:DIR|DIRECTORY|FOLDER|PATH|ROOT|FILE_DIR|STORE))"
    r"|SESSION_FILE_DIR|MEDIA_ROOT|UPLOAD_TO"
)


@rule(
    "SV060",
    "sticky sessions",
    Severity.warning,
    why="""A cookie ties a client to one replica, so something of the client's lives in that replica only. When
    it is killed, updated or scaled away, its clients lose their uploads and sessions; new replicas get no share
    of the old clients, so that scaling up does not relieve the full ones.""",
    mend="""Keep the state where all replicas see it (database, Redis, the shared volume) and take the `sticky`
    labels away. Where they only spare a cache, say so in a comment that accepts this.""",
)
@of_each
def sticky(project: Project, service: Service) -> Iterator[Found]:
    found = [
        (label.at, name)
        for name, label in service.labels.items()
        if _STICKY.fullmatch(name) and label.text.lower() != "false"
    ]
    for at, name in sorted(found)[:1]:  # the others say how
        yield Found(at, f"{name!r} ties each client to one replica")


@rule(
    "SV061",
    "upload or session state in one replica",
    Severity.warning,
    why="""The directory lies in the container, not on a volume that replicas share. The second part of an
    upload, or the next request of a session, reaches another replica, which knows nothing of the first; and all
    of it is gone when the container is recreated.""",
    mend="Put it on a shared volume, under a name of its own for each upload, or into the database or Redis.",
)
@of_each
def local_state(project: Project, service: Service) -> Iterator[Found]:
    for name, value in service.environment.items():
        path = value.text
        if _STATE.fullmatch(name) and path.startswith("/"):
            mount = service.mount_of(path.rstrip("/") or "/")
            if mount is None or not mount.shared:
                yield Found(value.at, f"{name} is {path!r}, which every replica has for itself")
        if name == "SESSION_TYPE" and path.lower() in {"filesystem", "cachelib", "memory"}:
            place = service.environment.get("SESSION_FILE_DIR", EMPTY).text
            mount = service.mount_of(place) if place else None
            if mount is None or not mount.shared:
                yield Found(value.at, f"sessions of the type {path!r} are known to one replica")


@rule(
    "SV062",
    "a proxy's route to one replica by name",
    Severity.error,
    why="""`api-1`, or a `container_name`, as the target of a proxy or of another service's URL is one replica:
    the others get no request, and when it is recreated under another number there is none.""",
    mend="Name the service: its name on the network stands for all replicas.",
)
def route_to_one(project: Project) -> Iterator[Found]:
    for target in project.replicated:
        name = re.escape(target.name)
        one = re.compile(rf"(?:^|[/@\s,=]|[a-z0-9]+[-_])({name}[-_]\d+)(?=[:/\s,]|$)")
        for service in project.services:
            for node in (*service.environment.values(), *service.words, *service.labels.values()):
                match = one.search(node.text)
                if match and match[1] not in {other.name for other in project.services}:
                    told = f"service {service.name!r}: {match[1]!r} is one of the {target.replicas} replicas"
                    yield Found(node.at, told, service.name)


RULES: Final[tuple[Rule, ...]] = (sticky, local_state, route_to_one)
