"""Rules: replicas that start together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import Project, Service
from sharedvol.lint.rule import Found, Rule, Severity, of_each, of_replicated, rule

DEFAULT_LOCK_TIMEOUT: Final = 30.0  # seconds; MigrationCoordinator's and R's
_NEEDED: Final = re.compile(
    r"migrat|alembic|flyway|liquibase|\bupgrade\b|\bchown\b|\bchmod\b|\bmkdir\b|\binit|\bseed|\bload\b|\binstall\b"
    r"|createdb|\bmysql\b|\bpsql\b|\bcp\b|\brsync\b|collectstatic|warm",
    re.IGNORECASE,
)
_MIGRATION: Final = re.compile(
    r"alembic\b.*\bupgrade|manage\.py\s+migrate|django-admin\s+migrate|flask\s+db\s+upgrade|flyway\b.*\bmigrate"
    r"|liquibase\b.*\bupdate|prisma\s+(?:migrate|db\s+push)|knex\s+migrate|sequelize\b.*db:migrate|r(?:ails|ake)\s+db:migrate"
    r"|yoyo\s+apply|goose\b.*\bup\b|dbmate\s+up|artisan\s+migrate|typeorm\b.*migration:run|aerich\s+upgrade",
    re.IGNORECASE,
)
_SCHEDULE: Final = re.compile(
    r"\bcelery\b.*\bbeat\b|\bcelery\b.*\bworker\b.*\s(?:-B|--beat)\b|\bcrond?\b|\bsupercronic\b|\brq-?scheduler\b|\bclockwork\b"
    r"|\bairflow\s+scheduler\b|\bschedule:work\b|\bofelia\b",
    re.IGNORECASE,
)


@rule(
    "SV030",
    "no healthcheck on a replicated service behind Traefik",
    Severity.warning,
    why="""Traefik's Docker provider leaves out a container whose health is `starting` or `unhealthy`; one
    without a healthcheck it takes for healthy from its first second. A new replica gets requests while it still
    waits for the migration lock, and one that hangs keeps getting them.""",
    mend="Add a `healthcheck:` that asks `/health/ready`, with a `start_period`.",
)
@of_replicated
def no_healthcheck(project: Project, service: Service) -> Iterator[Found]:
    health = service.node.get("healthcheck")
    test = health.get("test")
    is_off = health.get("disable").true or [one.text for one in test.items] == ["NONE"]
    if not is_off and test.present:
        return
    if not (is_off or service.is_routed):
        return  # the image may have one
    told = "its healthcheck is switched off" if is_off else "it gets requests from Traefik without a healthcheck"
    at = health.at if health.present else service.at
    yield Found(at, f"{told}", severity=None if service.is_routed else Severity.note)


@rule(
    "SV031",
    "start_period missing or shorter than the wait for the migration lock",
    Severity.warning,
    why="""At a start one replica migrates and the others wait for the lock, up to its time-out, not ready.
    Failed checks count from the end of `start_period`, which is 0 by default: after `retries` of them the
    waiting replicas are unhealthy, and whoever restarts unhealthy containers, or rolls the update back, does so
    in the middle of the migration.""",
    mend="""Set `start_period` above the lock's time-out, and `start_interval: 5s`, so that a ready replica is
    still found fast. The time-out is taken from LOCK_TIMEOUT or SHAREDVOL_LOCK_TIMEOUT in the environment, or
    from `x-sharedvol: {lock_timeout: 100}`; else it is 30 s.""",
)
@of_replicated
def short_start_period(project: Project, service: Service) -> Iterator[Found]:
    health = service.node.get("healthcheck")
    is_off = health.get("disable").true or [one.text for one in health.get("test").items] == ["NONE"]
    if not health.present or is_off or service.is_sidecar or service.is_database:
        return
    names = (service.declared("lock_timeout"), *(service.environment.get(n, EMPTY) for n in _LOCK_TIMEOUTS))
    waited = next((seconds for one in names if (seconds := one.seconds) is not None), DEFAULT_LOCK_TIMEOUT)
    period = health.get("start_period")
    if not period.present:
        yield Found(health.at, f"there is no start_period, and the migration lock may take {waited:g} s")
    elif period.seconds is not None and period.seconds <= waited:
        yield Found(period.at, f"start_period {period.text} is not longer than the {waited:g} s of the migration lock")


_LOCK_TIMEOUTS: Final = ("SHAREDVOL_LOCK_TIMEOUT", "LOCK_TIMEOUT", "MIGRATION_LOCK_TIMEOUT")


@rule(
    "SV032",
    "post_start used for what start-up needs",
    Severity.warning,
    why="""`post_start` runs after the container's process has started, beside it, in every replica: the program
    may serve before the hook has ended, N hooks do the same work at once, and a replica that the engine
    restarts by itself runs no hook.""",
    mend="""Do it before serving: in the program, by `MigrationCoordinator`, or in the start script under
    `sharedvol lock`. What is needed once for all replicas goes into a service of its own that others wait for
    (`condition: service_completed_successfully`).""",
)
@of_each
def post_start(project: Project, service: Service) -> Iterator[Found]:
    for hook in service.node.get("post_start").items:
        command = hook.get("command")
        line = command.text or " ".join(word.text for word in command.items)
        if _NEEDED.search(line):
            yield Found(hook.at, f"start-up needs {line[:80]!r}, but post_start runs beside the program")


@rule(
    "SV033",
    "database not waited for until it is healthy",
    Severity.warning,
    why="""`depends_on` in its short form waits until the database's process has started, not until it answers;
    a first start of MySQL takes half a minute. All replicas fail together, restart together and hit the
    database together.""",
    mend="""Write `depends_on: {db: {condition: service_healthy}}` and give the database a `healthcheck:`. The
    program still has to try again when the database is restarted later.""",
)
@of_replicated
def database_not_awaited(project: Project, service: Service) -> Iterator[Found]:
    databases = {one.name: one for one in project.services if one.is_database}
    for name, wait in service.node.get("depends_on").map.items():
        if name not in databases:
            continue
        if wait.get("condition").text != "service_healthy":
            yield Found(wait.at, f"it does not wait until {name!r} is healthy")
        elif not databases[name].node.get("healthcheck").present:
            yield Found(wait.at, f"it waits until {name!r} is healthy, which has no healthcheck here")


@rule(
    "SV034",
    "migration by every replica without a lock",
    Severity.error,
    why="""Each replica runs the migrations at its start. Two at once apply the same file twice; MySQL commits
    every DDL statement by itself, so that the loser fails half-way and leaves a schema that neither version
    knows.""",
    mend="""`sharedvol migrate run URL DIRECTORY` (also for `alembic.ini`) lets one apply and the others wait;
    for anything else `sharedvol lock /shared/locks/migrate.lock -- COMMAND`; or a service that runs once, which
    the replicas wait for by `condition: service_completed_successfully`.""",
)
@of_each
def unlocked_migration(project: Project, service: Service) -> Iterator[Found]:
    match = _MIGRATION.search(service.line)
    if match and "sharedvol" not in service.line and "flock" not in service.line and not _runs_once(service):
        yield Found(service.line_at, f"every replica runs {match[0][:80]!r} at its start")


def _runs_once(service: Service) -> bool:
    """A service for the migration alone: nothing is started behind it."""
    return not service.replicated and not re.search(r"&&|;|\n", service.line)


@rule(
    "SV035",
    "scheduler in a replicated service",
    Severity.error,
    why="Each replica runs the schedule: with four of them the nightly job runs four times, at the same second.",
    mend="""Put the scheduler into a service of its own with one replica, or let the job take a lock: `sharedvol
    lock /shared/locks/nightly.lock --timeout 0 -- COMMAND`.""",
)
@of_each
def scheduler(project: Project, service: Service) -> Iterator[Found]:
    match = _SCHEDULE.search(service.line)
    if match and (service.replicated or _has_more_than(match[0], service)):
        yield Found(service.line_at, f"every replica runs the schedule of {match[0][:80]!r}")


def _has_more_than(matched: str, service: Service) -> bool:
    """A scheduler alone is what is wanted; one inside a worker bites as soon as the worker is scaled."""
    return bool(re.search(r"worker", matched))


RULES: Final[tuple[Rule, ...]] = (
    no_healthcheck,
    short_start_period,
    post_start,
    database_not_awaited,
    unlocked_migration,
    scheduler,
)
