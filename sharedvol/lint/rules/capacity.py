"""Rules for connections, memory and processors that all replicas share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Final

from sharedvol.lint.compose.node import EMPTY, Node, Position
from sharedvol.lint.project import ComposeService, Project
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, of_replicated, rule

POOL: Final = (
    "pool_size",
    "POOL_SIZE",
    "DATABASE_CONNECTIONS",
    "DB_POOL_SIZE",
    "DATABASE_POOL_SIZE",
    "SQLALCHEMY_POOL_SIZE",
    "DB_POOL_MAX",
)
OVERFLOW: Final = ("max_overflow", "MAX_OVERFLOW", "POOL_OVERFLOW", "DB_MAX_OVERFLOW", "SQLALCHEMY_MAX_OVERFLOW")
WORKERS: Final = ("workers", "WEB_CONCURRENCY", "UVICORN_WORKERS", "GUNICORN_WORKERS", "WORKERS")
CONNECTIONS: Final = (
    "max_connections",
    "MAX_CONNECTIONS",
    "MYSQL_MAX_CONNECTIONS",
    "MARIADB_MAX_CONNECTIONS",
    "POSTGRESQL_MAX_CONNECTIONS",
)
_HOST: Final = re.compile(r"(?:@|//|^|\s)([A-Za-z0-9._-]+)(?=[:/\s]|$)")
_DEFAULTS: Final = {"mysql": 151, "mariadb": 151, "percona": 151, "postgres": 100, "postgis": 100, "pgvector": 100}
_WORKER_OPTION: Final = re.compile(r"(?:^|\s)(?:--workers|-w)[=\s]?(\d{1,4})(?=\s|$)")
_CONNECTION_OPTION: Final = re.compile(r"max[_-]connections\s*[=\s]\s*(\d{1,9})\b")


@dataclass(frozen=True)
class _Demand:
    service: ComposeService
    pool: int
    overflow: int
    workers: int
    extra: int

    @property
    def total(self) -> int:
        return (self.pool + self.overflow) * self.workers * (self.service.replicas + self.extra)

    def __str__(self) -> str:
        pool = f"({self.pool} + {self.overflow})" if self.overflow else str(self.pool)
        replicas = f"({self.service.replicas} + {self.extra} while updating)" if self.extra else self.service.replicas
        return f"{self.service.name}: {pool} x {self.workers} x {replicas} = {self.total}"


@rule(
    "SV050",
    "more pooled connections than the database accepts",
    Severity.error,
    why="""Each worker process of each replica has its own pool, so pool x workers x replicas connections are open
    under load. During a start-first update the connections of the new replicas are added. Beyond `max_connections`
    the server refuses further connections ("Too many connections"), including those of health checks and the
    migration.""",
    mend="""Make the pools smaller or `max_connections` larger. Declare what lint cannot see: `x-sharedvol:
    {pool_size: 5, max_overflow: 0, workers: 2, database: db}` at the service, `{max_connections: 300}` at the
    database.""",
)
def connections(project: Project) -> Iterator[Violation]:
    limits = {one.name: known for one in project.services if (known := _limit(one)) is not None}
    used = {one.name: _databases_of(one, limits.keys()) for one in project.services}
    for database in project.services:
        if database.name not in limits:
            continue
        limit, at = limits[database.name]
        users = [one for one in project.services if database.name in used[one.name]]
        demands = [demand for one in users if (demand := _demand(one)) is not None]
        total = sum(demand.total for demand in demands)
        if total > limit:
            message = f"{total} connections ({'; '.join(map(str, demands))}), but it accepts {limit}"
            yield Violation(at, f"service {database.name!r}: {message}", database.name)
        for unknown in users:
            if unknown.replicated and not unknown.is_sidecar and _demand(unknown) is None:
                message = f"nothing declares how many connections each of its {unknown.replicas} replicas opens"
                yield Violation(unknown.at, f"service {unknown.name!r}: {message}", unknown.name, Severity.note)


def _limit(database: ComposeService) -> tuple[int, Position] | None:
    """Return how many connections it accepts, and where that is declared; None if it is not a database."""
    # Such a variable limits what a database accepts. In another service it may be the number that it opens.
    declared = database.number(*(CONNECTIONS if database.is_database else CONNECTIONS[:1]))
    if declared:
        return declared[0], declared[1].at
    match = _CONNECTION_OPTION.search(database.line)
    if match and database.is_database:
        return int(match[1]), database.line_at
    default = next(
        (number for name, number in _DEFAULTS.items() if database.is_database and name in database.image), None
    )
    return None if default is None else (default, database.at)


def _databases_of(service: ComposeService, known: Set[str]) -> Set[str]:
    """Return the databases of a service: declared, or known ones that it depends on or names in its environment."""
    declared = service.declared("database").text
    if declared:
        return {declared}
    named = {name for node in service.environment.values() for name in _HOST.findall(node.text)}
    return (known & (named | service.node.get("depends_on").map.keys())) - {service.name}


def _demand(service: ComposeService) -> _Demand | None:
    pool = service.number(*POOL)
    if pool is None:
        return None
    overflow = service.number(*OVERFLOW)
    update = service.node.get("deploy", "update_config")
    is_first = update.get("order").text == "start-first"
    extra = min(update.get("parallelism").number or 1, service.replicas) if is_first and service.replicated else 0
    return _Demand(service, pool[0], overflow[0] if overflow else 0, _workers(service), extra)


def _workers(service: ComposeService) -> int:
    found = _WORKER_OPTION.search(service.line) or _WORKER_OPTION.search(
        service.environment.get("GUNICORN_CMD_ARGS", EMPTY).text
    )
    if found:
        return max(1, int(found[1]))
    declared = service.number(*WORKERS)
    return max(1, declared[0]) if declared else 1


# Memory


@rule(
    "SV051",
    "memory limits of all replicas exceed the host's memory",
    Severity.error,
    why="""A limit lets each replica use that much memory. If all limits together exceed the memory of the machine
    and the replicas use it at the same time, the kernel's out-of-memory killer ends a process, which may be the
    database.""",
    mend="""Lower the limit or the number of replicas, and leave some memory for the system. Give the memory of the
    target machine with `--host-memory 16G`. Without it, lint compares with its own machine and reports a note.""",
)
def memory(project: Project) -> Iterator[Violation]:
    host = project.host.memory
    limited = [(service, limit) for service in project.services if (limit := _memory(service)) is not None]
    total = sum(limit.bytes * service.replicas for service, limit in limited if limit.bytes)
    if host is None or total <= host or not any(service.replicated for service, _ in limited):
        return
    service, limit = max(limited, key=lambda one: (one[1].bytes or 0) * one[0].replicas)
    where = "the host has" if project.host.given else "this machine has"
    message = (
        f"{service.replicas} x {_size(limit.bytes or 0)} here, {_size(total)} in all services; {where} {_size(host)}"
    )
    severity = Severity.error if project.host.given else Severity.note  # another machine's memory says little
    yield Violation(limit.at, f"service {service.name!r}: {message}", service.name, severity)


@rule(
    "SV052",
    "no memory limit on a replicated service",
    Severity.warning,
    why="""A replica that leaks uses up the memory of its neighbors and of the database, and the kernel kills the
    largest process. With a limit it kills the replica that leaks, and the others keep running.""",
    mend="Set `deploy.resources.limits.memory`; limit x replicas, with the other services, must fit the machine.",
)
@of_replicated
def no_memory_limit(service: ComposeService) -> Iterator[Violation]:
    if _memory(service) is None:
        yield Violation(service.at, "a replica has no memory limit")


def _memory(service: ComposeService) -> Node | None:
    for node in (service.node.get("deploy", "resources", "limits", "memory"), service.node.get("mem_limit")):
        if node.bytes:
            return node
    return None


def _size(number: int) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return f"{number} bytes"


@rule(
    "SV053",
    "all replicas on the same processors",
    Severity.warning,
    why="""`cpuset` names the same processors for every replica. Four replicas share what one had, while the other
    processors are idle.""",
    mend="Remove `cpuset` and limit the share with `deploy.resources.limits.cpus`.",
)
@of_each
def cpuset(service: ComposeService) -> Iterator[Violation]:
    pinned = service.node.get("cpuset")
    if pinned.text:
        yield Violation(pinned.at, f"all replicas run on the processors {pinned.text}")


RULES: Final[tuple[Rule, ...]] = (connections, memory, no_memory_limit, cpuset)
