"""Rules for replicas that start together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import ComposeService
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, of_replicated, rule

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
    why="""Traefik's Docker provider skips a container whose health is `starting` or `unhealthy`. A container without
    a healthcheck counts as healthy from its first second. A new replica gets requests while it still waits for the
    migration lock, and a replica that hangs keeps getting them.""",
    mend="Add a `healthcheck:` that requests `/health/ready`, with a `start_period`.",
)
@of_replicated
def no_healthcheck(service: ComposeService) -> Iterator[Violation]:
    health = service.node.get("healthcheck")
    test = health.get("test")
    is_off = health.get("disable").true or [one.text for one in test.items] == ["NONE"]
    if not is_off and test.present:
        return
    if not (is_off or service.is_routed):
        return  # the image may have one
    message = "its healthcheck is switched off" if is_off else "it gets requests from Traefik without a healthcheck"
    at = health.at if health.present else service.at
    yield Violation(at, f"{message}", severity=None if service.is_routed else Severity.note)


@rule(
    "SV031",
    "start_period missing or shorter than the wait for the migration lock",
    Severity.warning,
    why="""At a start one replica migrates. The others are not ready and wait for the lock, up to its timeout.
    Failed checks count from the end of `start_period`, which is 0 by default. After `retries` failed checks the
    waiting replicas are unhealthy, and a tool that restarts unhealthy containers, or rolls the update back, does
    so in the middle of the migration.""",
    mend="""Set `start_period` above the lock's timeout, and `start_interval: 5s`, so that a ready replica is
    still found fast. The timeout is read from LOCK_TIMEOUT or SHAREDVOL_LOCK_TIMEOUT in the environment, or
    from `x-sharedvol: {lock_timeout: 100}`; otherwise it is 30 s.""",
)
@of_replicated
def short_start_period(service: ComposeService) -> Iterator[Violation]:
    health = service.node.get("healthcheck")
    is_off = health.get("disable").true or [one.text for one in health.get("test").items] == ["NONE"]
    if not health.present or is_off or service.is_sidecar or service.is_database:
        return
    names = (service.declared("lock_timeout"), *(service.environment.get(n, EMPTY) for n in _LOCK_TIMEOUTS))
    waited = next((seconds for one in names if (seconds := one.seconds) is not None), DEFAULT_LOCK_TIMEOUT)
    period = health.get("start_period")
    if not period.present:
        yield Violation(health.at, f"there is no start_period, and the migration lock may take {waited:g} s")
    elif period.seconds is not None and period.seconds <= waited:
        yield Violation(
            period.at, f"start_period {period.text} is not longer than the {waited:g} s of the migration lock"
        )


_LOCK_TIMEOUTS: Final = ("SHAREDVOL_LOCK_TIMEOUT", "LOCK_TIMEOUT", "MIGRATION_LOCK_TIMEOUT")


@rule(
    "SV032",
    "post_start used for work that must precede serving",
    Severity.warning,
    why="""`post_start` runs in every replica, after the container's process has started and in parallel with it. The
    program may serve before the hook has ended, N hooks do the same work at once, and no hook runs when the engine
    restarts a replica.""",
    mend="""Do the work before serving: in the program, by `MigrationCoordinator`, or in the start script under
    `sharedvol lock`. Move work that is needed once for all replicas to a service of its own, and let the replicas
    wait for it (`condition: service_completed_successfully`).""",
)
@of_each
def post_start(service: ComposeService) -> Iterator[Violation]:
    for hook in service.node.get("post_start").items:
        command = hook.get("command")
        line = command.text or " ".join(word.text for word in command.items)
        if _NEEDED.search(line):
            yield Violation(hook.at, f"{line[:80]!r} must precede serving, but post_start runs in parallel")


@rule(
    "SV033",
    "start before the database is healthy",
    Severity.warning,
    why="""`depends_on` in its short form waits until the database's process has started, not until it answers.
    The first start of MySQL takes half a minute. All replicas fail together, restart together and connect to the
    database together.""",
    mend="""Write `depends_on: {db: {condition: service_healthy}}` and give the database a `healthcheck:`. The
    program must still retry when the database is restarted later.""",
)
@of_replicated
def database_not_awaited(service: ComposeService) -> Iterator[Violation]:
    databases = {one.name: one for one in service.project.services if one.is_database}
    for name, wait in service.node.get("depends_on").map.items():
        if name not in databases:
            continue
        if wait.get("condition").text != "service_healthy":
            yield Violation(wait.at, f"it does not wait until {name!r} is healthy")
        elif not databases[name].node.get("healthcheck").present:
            yield Violation(wait.at, f"it waits until {name!r} is healthy, but that has no healthcheck")


@rule(
    "SV034",
    "migration by every replica without a lock",
    Severity.error,
    why="""Each replica runs the migrations at its start. Two replicas apply the same file at once. MySQL commits
    every DDL statement separately, so one of them fails halfway and leaves a schema that neither version knows.""",
    mend="""Use `sharedvol migrate run URL DIRECTORY` (also for `alembic.ini`): one replica applies, and the others
    wait. For another tool, use `sharedvol lock /shared/locks/migrate.lock -- COMMAND`, or a service that runs once
    and that the replicas wait for (`condition: service_completed_successfully`).""",
)
@of_each
def unlocked_migration(service: ComposeService) -> Iterator[Violation]:
    match = _MIGRATION.search(service.line)
    if match and "sharedvol" not in service.line and "flock" not in service.line and not _runs_once(service):
        yield Violation(service.line_at, f"every replica runs {match[0][:80]!r} at its start")


def _runs_once(service: ComposeService) -> bool:
    """Return whether the service only migrates: its command starts nothing afterwards."""
    return not service.replicated and not re.search(r"&&|;|\n", service.line)


@rule(
    "SV035",
    "scheduler in a replicated service",
    Severity.error,
    why="Each replica runs the schedule: with four replicas the nightly job runs four times in the same second.",
    mend="""Put the scheduler into a service of its own with one replica, or let the job acquire a lock: `sharedvol
    lock /shared/locks/nightly.lock --timeout 0 -- COMMAND`.""",
)
@of_each
def scheduler(service: ComposeService) -> Iterator[Violation]:
    match = _SCHEDULE.search(service.line)
    if match and (service.replicated or _runs_a_worker(match[0])):
        yield Violation(service.line_at, f"every replica runs the schedule of {match[0][:80]!r}")


def _runs_a_worker(matched: str) -> bool:
    """Return whether the scheduler runs inside a worker, which may be scaled; a scheduler alone is right."""
    return "worker" in matched


RULES: Final[tuple[Rule, ...]] = (
    no_healthcheck,
    short_start_period,
    post_start,
    database_not_awaited,
    unlocked_migration,
    scheduler,
)
