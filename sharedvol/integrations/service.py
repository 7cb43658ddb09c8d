"""`Service`: the life of one process of a replica, independent of frameworks and servers."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from sharedvol import forks, native
from sharedvol.errors import SharedVolError
from sharedvol.health import Health, HealthReport
from sharedvol.identity import container_id
from sharedvol.integrations.checks import OK, Checks
from sharedvol.integrations.drain import Gates
from sharedvol.integrations.family import join_later, slot_of_family
from sharedvol.integrations.process import START_UP_FAILED, end_process, start_thread
from sharedvol.migrations.coordinator import MigrationCoordinator
from sharedvol.volume import Volume
from sharedvol.volume.membership import Membership

if TYPE_CHECKING:
    from sqlalchemy import Engine

_log = logging.getLogger(__name__)


class Service:
    """A process of a replica: it joins a volume, runs the migrations, reports readiness, drains, and leaves.

    ::

        service = Service(volume="/shared/spool", coordinator=MigrationCoordinator(url, "/app/migrations"))

    Create one for each process, when its module is imported. In a forked child it is not started, but it knows whether
    its parent has run the migrations.

    Args:
        volume: the directory that the replicas share, or a `Volume`. It is joined at the start and left at the stop.
        coordinator: the migrations. They run in a thread at the start, and the replica is not ready before they end.
        checks: further conditions of readiness, by name; see `sharedvol.integrations.checks.Checks`. If one fails, its
            name is the ``reason``.
        drain: seconds between SIGTERM and the server's own shutdown, in which the readiness check answers 503
            ``draining`` and requests are still served. It must be longer than the load balancer needs to notice.
        purpose: a few words that ``sharedvol status`` shows.
        migrate: False if something else runs the migrations. Readiness then waits for it.
        check_timeout: seconds that all ``checks`` together may take.
        max_age: seconds for which answers of the database and the checks are reused.
        database: when readiness queries the database, see `sharedvol.health.Health`.
        engine: the engine of these queries, see `sharedvol.health.Health`.
        exit_on_failure: whether a failed start-up in the background ends the process with status 3.

    Attributes:
        failed: why the start-up failed; None if it did not.
        serving: whether the server takes requests, so that a drain makes sense.

    Raises:
        TypeError: a check is not a function.
        ValueError: ``drain`` or another time is negative.
    """

    def __init__(
        self,
        *,
        volume: str | os.PathLike[str] | Volume | None = None,
        coordinator: MigrationCoordinator | None = None,
        checks: Mapping[str, Callable[[], object]] | None = None,
        drain: float = 5.0,
        purpose: str = "",
        migrate: bool = True,
        check_timeout: float = 2.0,
        max_age: float = 1.0,
        database: Literal["start", "always"] = "start",
        engine: Engine | None = None,
        exit_on_failure: bool = True,
    ) -> None:
        for name, seconds in (("drain", drain), ("check_timeout", check_timeout), ("max_age", max_age)):
            if not seconds >= 0:
                raise ValueError(f"{name} must be 0 or more seconds, not {seconds!r}")
        self.volume = volume if isinstance(volume, Volume) or volume is None else Volume(volume)
        self.coordinator = coordinator
        self.drain, self.purpose, self.exit_on_failure = drain, purpose, exit_on_failure
        self._new_health = functools.partial(Health, coordinator, max_age=max_age, database=database, engine=engine)
        self._checks = Checks(checks or {}, timeout=check_timeout, max_age=max_age)
        self._migrates = coordinator is not None and migrate
        self._migrated = not self._migrates
        self._master_drains: Callable[[], bool] | None = None
        self.renew()
        forks.track(self)

    def renew(self) -> None:
        """Forget the state of the parent process. A forked child calls it automatically."""
        self._lock, self._counting = native.Turnstile(), native.Turnstile()
        self._started = self._starting = self._stopped = self._draining = False
        self._users = 0
        self.serving = False
        self._membership: Membership | None = None
        self._family_slot: int | None = None
        self._ended = threading.Event()
        self._run: threading.Thread | None = None
        self._gates = Gates(self.drain, self._on_sigterm, lambda: self._master_drains is not None)
        self._health = self._new_health()
        self._checks.renew()
        self.failed: BaseException | None = None

    @property
    def replica(self) -> str | None:
        """The replica's name; None if this container has no name."""
        membership = self._membership
        if membership is not None:
            return membership.name
        try:
            return container_id()
        except SharedVolError:
            return None

    @property
    def slot(self) -> int | None:
        """The replica's slot on the volume; None before the start, after the stop and without a volume."""
        forks.notice()
        membership = self._membership  # `stop` may clear it meanwhile
        return self._family_slot if membership is None else membership.slot

    @property
    def started(self) -> bool:
        """Whether this process has joined the volume and has begun to migrate."""
        forks.notice()
        return self._started

    @property
    def draining(self) -> bool:
        """Whether this replica is about to stop."""
        return self._draining or (self._master_drains is not None and self._master_drains())

    @property
    def told_to_stop(self) -> bool:
        """Whether the server stops, so that a start is pointless. Known only after `drain_on_sigterm`."""
        return self._gates.opened

    @property
    def in_use(self) -> bool:
        """Whether a lifespan of an application is running."""
        return self._users > 0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Delay SIGTERM during a block, and stop at the end of the last such block.

        Two servers may run one application, and each of them has its own handler of SIGTERM.
        """
        with self._counting:
            self._users += 1
        gate = self._gates.add()
        try:
            yield
        finally:
            with self._counting:
                self._users -= 1
                if gate is not None:
                    self._gates.remove(gate)
                if not self._users:
                    self.stop()

    def start(self, *, wait: bool = False) -> None:
        """Join the volume, and begin to migrate in a thread. Does nothing in a process that has started.

        A worker starts even if it cannot join, as long as its master or another worker is a member. It logs why, and
        retries in the background.

        Args:
            wait: wait until no migration is pending.

        Raises:
            PresenceError, LockError, InvalidNameError, IdentityError: as `Volume.join`.
            SharedVolError: with ``wait``, as `MigrationCoordinator.run`. Without it, such an error ends the process.
        """
        forks.notice()
        with self._lock:
            if not self._started:
                self._stopped, self._ended = False, threading.Event()
                self._join()
                if self._stopped:  # while this process waited for others to join
                    self._leave()
                    return
                self._started = True
            if not self._migrated:
                self._begin_to_migrate(wait)

    def start_in_background(self) -> bool:
        """Run `start` in a thread, where an error ends the process. Return whether a start has begun."""
        if self.started or self._starting or self._stopped or self._lock.locked():
            return False
        self._starting = True
        start_thread(self._start_or_end, "start")
        return True

    def run_migrations(self) -> None:
        """Apply pending migrations in this thread. Do so even if they ran before, because a reload may bring new ones.

        Raises:
            SharedVolError: as `MigrationCoordinator.run`.
        """
        if self.coordinator is None or not self._migrates:
            return
        try:
            self.coordinator.run()
        except BaseException as error:
            self.failed = error
            raise
        self._migrated, self.failed = True, None

    def live(self) -> HealthReport:
        """Return a report that the process is alive."""
        return self._health.live()

    def ready(self) -> HealthReport:
        """Return whether the replica is ready for requests, as `Health.ready` does, with further reasons.

        These are ``starting``, ``draining``, ``startup_error`` and the names of the ``checks``. The body also has
        ``replica``, ``slot`` and ``checks``. It takes at most 5 s for the database and the time limit of the checks.
        """
        forks.notice()
        report = self._draining_report() or self._readiness()
        report.body.update(replica=self.replica, slot=self.slot)
        return report

    def begin_drain(self) -> None:
        """Report from now on that this process is not ready, because it is about to stop."""
        self._draining = True

    def drain_when(self, told: Callable[[], bool]) -> None:
        """Drain when ``told()`` is true, and not at SIGTERM, because a master decides for all its workers."""
        self._master_drains = told

    def drain_on_sigterm(self, *, serving: bool = True) -> bool:
        """Delay SIGTERM for ``drain`` seconds before its current handler runs. Call it in the main thread.

        Args:
            serving: whether the server takes requests. If not, SIGTERM is not delayed before ``self.serving`` is set.

        Returns:
            Whether SIGTERM will be delayed: not if a master drains, and not if the server closes its port first.
        """
        self.serving = self.serving or serving
        return self._gates.add() is not None

    def warn_if_undrained(self) -> None:
        """Log one warning, with the server's name and the remedy, if nothing drains this process at SIGTERM."""
        self._gates.warn_if_none()

    def keep_draining_on_sigterm(self) -> None:
        """Delay SIGTERM again if another server in this process has set its own handler since."""
        if self._gates:
            self._gates.add()

    def stop(self) -> None:
        """Leave the volume without waiting. A migration that is still running ends with the process."""
        forks.notice()
        self._stopped, self._started, self._draining, self.serving = True, False, False, False
        self._ended.set()
        self._gates.clear()
        self._leave()

    def _join(self) -> None:
        if self.volume is None or self._membership is not None:
            return
        replica = self.replica
        self._family_slot = None if replica is None else slot_of_family(replica)
        if self._family_slot is None:
            self._membership = self.volume.join(purpose=self.purpose)
            return
        join_later(functools.partial(self._join_now, self._ended), str(self.volume.path), self._ended)

    def _join_now(self, ended: threading.Event) -> None:
        assert self.volume is not None
        membership = self._membership = self.volume.join(purpose=self.purpose)
        if ended.is_set():  # the service was stopped meanwhile, and perhaps started again
            membership.leave()

    def _leave(self) -> None:
        self._family_slot = None
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.leave()

    def _begin_to_migrate(self, wait: bool) -> None:
        run = self._run if self._run is not None and self._run.is_alive() else None
        if wait and run is not None:
            run.join()
            if self.failed is not None:
                raise self.failed
        elif wait:
            self.run_migrations()
        elif run is None:
            self._run = start_thread(self._migrate_or_end, "migrations")

    def _migrate_or_end(self) -> None:
        try:
            self.run_migrations()
        except BaseException:
            self._fail("the migrations failed")  # the coordinator has logged the reason

    def _start_or_end(self) -> None:
        try:
            self.start()
        except BaseException as error:
            self.failed = error
            self._fail(f"cannot start: {error}")
        finally:
            self._starting = False

    def _fail(self, what: str) -> None:
        if self._stopped:
            return
        if not self.exit_on_failure:
            _log.critical("%s", what)
            return
        _log.critical("%s: this process ends with status %d", what, START_UP_FAILED)
        end_process()

    def _readiness(self) -> HealthReport:
        if self.failed is not None:
            migrating = self._started and self.coordinator is not None
            return self._health.not_ready("migration_error" if migrating else "startup_error", str(self.failed))
        if not self._started:
            return self._health.not_ready("starting", "the service has not started in this process")
        if not self._migrated:
            return self._health.not_ready("migrations_pending")
        report = self._health.ready()
        if not report.ok:
            return HealthReport(report.code, dict(report.body))
        results = self._checks.ask()
        failing = [name for name, result in results.items() if result != OK]
        if failing:
            report = self._health.not_ready(failing[0], f"{failing[0]}: {results[failing[0]]}")
        return self._draining_report() or HealthReport(report.code, {**report.body, "checks": results})

    def _draining_report(self) -> HealthReport | None:
        return self._health.not_ready("draining") if self.draining else None

    def _on_sigterm(self) -> bool:
        """Return whether to delay SIGTERM. This runs in the signal handler, so it must not acquire a lock."""
        self._draining = True
        if not self._started or not self.serving or self.drain == 0 or self._gates.passed or self._gates.reloads:
            return False
        waiting = not self._migrated and self.coordinator is not None and self.coordinator.current.state == "waiting"
        return not waiting  # a replica that waits for another one has no requests and no unfinished migration
