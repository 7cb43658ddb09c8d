"""Rules for requests that reach another replica than the request before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import ComposeService, Project
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, rule

_STICKY: Final = re.compile(r"traefik\.(?:http|tcp)\.services\.[^.]+\.loadbalancer\.sticky(?:\..*)?", re.IGNORECASE)
_STATE: Final = re.compile(
    r"(?:.*_)?(?:UPLOADS?|TUS|CHUNKS?|SESSIONS?|JOBS?|STATE|MEDIA)(?:_(?:DIR|DIRECTORY|FOLDER|PATH|ROOT|FILE_DIR|STORE))"
    r"|SESSION_FILE_DIR|MEDIA_ROOT|UPLOAD_TO"
)


@rule(
    "SV060",
    "sticky sessions",
    Severity.warning,
    why="""A cookie ties a client to one replica, so that replica keeps state of the client. When it is killed,
    updated or removed by scaling down, its clients lose their uploads and sessions. New replicas get none of the
    old clients, so scaling up does not relieve the busy ones.""",
    mend="""Keep the state where all replicas see it (database, Redis, the shared volume) and remove the `sticky`
    labels. If they only improve cache hits, accept this finding in a comment.""",
)
@of_each
def sticky(service: ComposeService) -> Iterator[Violation]:
    found = [
        (label.at, name)
        for name, label in service.labels.items()
        if _STICKY.fullmatch(name) and label.text.lower() != "false"
    ]
    for at, name in sorted(found)[:1]:  # the other labels are options of the cookie
        yield Violation(at, f"{name!r} ties each client to one replica")


@rule(
    "SV061",
    "upload or session state in one replica",
    Severity.warning,
    why="""The directory is in the container, not on a volume that replicas share. The second part of an upload, or
    the next request of a session, may reach another replica, which does not have the first part. Everything is
    lost when the container is recreated.""",
    mend="Put it on a shared volume, with a unique name for each upload, or into the database or Redis.",
)
@of_each
def local_state(service: ComposeService) -> Iterator[Violation]:
    for name, value in service.environment.items():
        path = value.text
        if _STATE.fullmatch(name) and path.startswith("/"):
            mount = service.mount_of(path.rstrip("/") or "/")
            if mount is None or not mount.shared:
                yield Violation(value.at, f"{name} is {path!r}, which replicas do not share")
        if name == "SESSION_TYPE" and path.lower() in {"filesystem", "cachelib", "memory"}:
            place = service.environment.get("SESSION_FILE_DIR", EMPTY).text
            mount = service.mount_of(place) if place else None
            if mount is None or not mount.shared:
                yield Violation(value.at, f"sessions of type {path!r} exist in one replica only")


@rule(
    "SV062",
    "a proxy's route to one replica by name",
    Severity.error,
    why="""`api-1`, or a `container_name`, as the target of a proxy or of another service's URL is one replica. The
    others get no requests, and no replica gets any when this one is recreated under another number.""",
    mend="Use the name of the service, which reaches all replicas on the network.",
)
def route_to_one(project: Project) -> Iterator[Violation]:
    for target in project.replicated:
        name = re.escape(target.name)
        one = re.compile(rf"(?:^|[/@\s,=]|[a-z0-9]+[-_])({name}[-_]\d+)(?=[:/\s,]|$)")
        for service in project.services:
            for node in (*service.environment.values(), *service.words, *service.labels.values()):
                match = one.search(node.text)
                if match and match[1] not in {other.name for other in project.services}:
                    message = f"service {service.name!r}: {match[1]!r} is one of the {target.replicas} replicas"
                    yield Violation(node.at, message, service.name)


RULES: Final[tuple[Rule, ...]] = (sticky, local_state, route_to_one)
