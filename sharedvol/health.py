"""Liveness and readiness of a replica, for ``HEALTHCHECK`` and the load balancer.

A replica that runs migrations, or waits for another replica's, is alive: a restart would only make it start again. It
is not ready, and names the replica that it waits for.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from sharedvol import native
from sharedvol.errors import DatabaseError, ManifestError, SharedVolError
from sharedvol.migrations.coordinator import MigrationCoordinator
from sharedvol.migrations.manifest import Manifest
from sharedvol.migrations.status import MigrationStatus

if TYPE_CHECKING:
    from sqlalchemy import Engine

LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"
_PATIENCE_SECONDS: Final = 5

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class HealthReport:
    """An answer to a health check.

    Attributes:
        code: the HTTP status: 200 or 503.
        body: the answer, for JSON.
    """

    code: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return self.code == 200


Report = HealthReport  # the old name, for one release


class Health:
    """Liveness and readiness of a replica whose start-up runs migrations.

    ::

        coordinator = MigrationCoordinator("mysql://app@db/shop", "/app/migrations")
        health = Health(coordinator)
        threading.Thread(target=coordinator.run).start()
        health.ready()      # HealthReport(code=503, body={'status': 'not_ready', 'reason': 'migrations_pending', ...})

    Args:
        coordinator: the coordinator of the migrations. It need not run in this process. None for a replica without
            migrations, which is always ready.
        max_age: seconds for which an answer of the database is reused, so that checks cannot load it.
        database: ``start`` queries the database until nothing is pending, and keeps that answer for these files. All
            replicas share the database. If none of them was ready while it does not answer, the proxy would have no
            replica left, even for requests that do not need it. ``always`` queries it for each check.
        engine: an SQLAlchemy engine for the queries, such as the application's. By default it is the coordinator's
            engine, or a new connection for each query if the coordinator has a URL.

    Raises:
        ValueError: ``database`` has an invalid value, or the engine is asynchronous.
    """

    def __init__(
        self,
        coordinator: MigrationCoordinator | None,
        *,
        max_age: float = 1.0,
        database: Literal["start", "always"] = "start",
        engine: Engine | None = None,
    ) -> None:
        if database not in ("start", "always"):
            raise ValueError(f"database must be 'start' or 'always', not {database!r}")
        if engine is None and coordinator is not None:
            engine = coordinator.engine
        elif engine is not None and engine.dialect.is_async:
            raise ValueError("the engine is asynchronous: give an engine with a synchronous driver")
        self._coordinator, self._engine = coordinator, engine
        self._max_age, self._always = max_age, database == "always"
        self._lock = native.Turnstile()  # a greenlet starts the query under it, and another one stores the answer
        self._answered: tuple[float, HealthReport] | None = None
        self._query: _Query | None = None
        self._settled: Manifest | None = None

    def live(self) -> HealthReport:
        """Report that the process answers. Does not query the database, because a restart would not repair that."""
        return HealthReport(200, {"status": "alive", "timestamp": _now()})

    def ready(self) -> HealthReport:
        """Report whether the replica may serve, as the R API's ``/health/ready`` does.

        The code is 200 if nothing is pending and the manifest is as expected. Otherwise it is 503, with the ``reason``
        ``database_unavailable``, ``migration_error`` or ``migrations_pending``. The other fields are those of
        `MigrationStatus.as_dict`. ``database`` is ``unknown`` if the database was not queried.

        It never waits longer than 5 seconds. While a query takes longer, the last answer is used for ``max_age``.
        """
        if self._coordinator is None:
            return _report(None, None, None)
        current = self._coordinator.current
        if current.state in ("waiting", "migrating"):
            return _report(current, "migrations_pending", "unknown")
        with self._lock:
            answered = self._answered
            if answered is not None and time.monotonic() - answered[0] <= self._max_age:
                return answered[1]
            query = self._query
            if query is None or query.ended:
                query = self._query = _Query(functools.partial(self._answer_now, self._coordinator, current))
        # Checks that arrive meanwhile wait for the same answer, and no longer than the first of them.
        report = query.wait(_PATIENCE_SECONDS)
        if report is None:
            error = f"the database has not answered for {query.age:.1f} s"
            return _report(current, "database_unavailable", "unknown", error)
        return report

    def _answer_now(self, coordinator: MigrationCoordinator, current: MigrationStatus) -> HealthReport:
        report = self._answer(coordinator, current)
        with self._lock:
            self._answered = (time.monotonic(), report)
        return report

    def _is_settled(self, coordinator: MigrationCoordinator, current: MigrationStatus) -> bool:
        """Return whether a run or an answer has shown that nothing of the present files is pending."""
        known = [] if current.state == "failed" else [self._settled]
        if current.state in ("up_to_date", "ahead"):
            known.append(current.manifest)
        return any(known) and coordinator.read_manifest() in known

    def not_ready(self, reason: str, error: str | None = None) -> HealthReport:
        """Report that the replica may not serve, for a reason that the caller knows. Does not query the database.

        Args:
            reason: a word for programs, such as ``draining``.
            error: a text for people.
        """
        if self._coordinator is None:
            return _report(None, reason, None, error)
        return _report(self._coordinator.current, reason, "unknown", error)

    def _answer(self, coordinator: MigrationCoordinator, current: MigrationStatus) -> HealthReport:
        try:
            if not self._always and self._is_settled(coordinator, current):
                return _report(current, None, "unknown")
            found = self._status(coordinator)
        except DatabaseError as error:
            return _report(current, "database_unavailable", "unavailable", str(error))
        except (ManifestError, ValueError) as error:
            return _report(coordinator.current, "migration_error", "unknown", str(error))
        except SharedVolError as error:
            return _report(current, "migration_error", "connected", str(error))
        if current.state == "failed":
            return _report(current, "migration_error", "connected")
        if found.pending:
            return _report(found, "migrations_pending", "connected")
        self._settled = found.manifest
        return _report(current if current.state == found.state else found, None, "connected")

    def _status(self, coordinator: MigrationCoordinator) -> MigrationStatus:
        if self._engine is None:
            return coordinator.status(patience=_PATIENCE_SECONDS)
        try:
            return self._status_by(self._engine, coordinator)
        except DatabaseError as error:
            if not error.lost:
                raise
        return self._status_by(self._engine, coordinator)  # the server had ended the connection: use a new one

    def _status_by(self, engine: Engine, coordinator: MigrationCoordinator) -> MigrationStatus:
        from sqlalchemy.exc import SQLAlchemyError

        failures: Any = (SQLAlchemyError, getattr(engine.dialect.dbapi, "Error", SQLAlchemyError))
        try:
            connection = engine.connect()
        except failures as error:
            words = str(error).splitlines()[0]
            raise DatabaseError(f"cannot get a connection of the engine: {words}") from error
        with connection:
            try:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                return coordinator.status(connection=connection)
            except DatabaseError:
                connection.invalidate()  # the pool must not give it to the application
                raise
            except failures as error:
                connection.invalidate()
                words = str(error).splitlines()[0]
                raise DatabaseError(f"cannot use a connection of the engine: {words}", lost=True) from error


class _Query:
    """One query of the database in a thread, for any number of checks that wait for it."""

    def __init__(self, answer: Callable[[], HealthReport]) -> None:
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._report: HealthReport | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(answer,), name="sharedvol-readiness", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether there is an answer."""
        return self._done.is_set()

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def wait(self, seconds: float) -> HealthReport | None:
        """Return the answer; None if there is none ``seconds`` after the query began."""
        if not self._done.wait(max(0.0, seconds - self.age)):
            return None
        if self._error is not None:
            raise self._error
        return self._report

    def _run(self, answer: Callable[[], HealthReport]) -> None:
        try:
            self._report = answer()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


def health_app(health: Health, *, live_path: str = LIVE_PATH, ready_path: str = READY_PATH) -> Any:
    """Return an ASGI application with both checks, to mount or to serve on a port of its own.

    Args:
        health: the checks.
        live_path: the path of the liveness check.
        ready_path: the path of the readiness check.
    """
    answers = {live_path: health.live, ready_path: health.ready}

    async def app(scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the health checks only handle HTTP, not {scope['type']}")
        answer = next((answers[path] for path in _paths(scope) if path in answers), None)
        if answer is None:
            report = HealthReport(404, {"error": f"no such check: use {live_path} or {ready_path}"})
        elif scope["method"] not in ("GET", "HEAD"):
            report = HealthReport(405, {"error": "use GET"})
        elif answer == health.live:
            report = health.live()  # on the loop, however busy the threads are
        else:
            report = await asyncio.to_thread(answer)  # in a thread, so that the query does not block the event loop
        body = json.dumps(report.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if report.code == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": report.code, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def _paths(scope: _Scope) -> Iterator[str]:
    """Yield the request's path relative to this application, by each reading of ``root_path``.

    By the ASGI specification the path includes ``root_path``. If a proxy strips a prefix that only ``root_path`` names,
    the path includes the rest of it, the mount point, or nothing of it.
    """
    path = scope["path"]
    parts = [part for part in scope.get("root_path", "").split("/") if part]
    for number in range(len(parts) + 1):
        prefix = "".join(f"/{part}" for part in parts[number:])
        if path == prefix or path.startswith(f"{prefix}/"):
            yield "/" + path[len(prefix) :].lstrip("/")


async def _lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _report(
    status: MigrationStatus | None, reason: str | None, database: str | None, error: str | None = None
) -> HealthReport:
    body: dict[str, Any] = {"status": "ready" if reason is None else "not_ready"}
    if reason is not None:
        body["reason"] = reason
    if database is not None:
        body["database"] = database
    body["timestamp"] = _now()
    if status is not None:
        body |= status.as_dict()
    if error is not None:
        body["error"] = error
    return HealthReport(200 if reason is None else 503, body)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
