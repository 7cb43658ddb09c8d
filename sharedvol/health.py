"""Whether a replica lives, and whether it may be sent requests: for ``HEALTHCHECK`` and the load balancer.

Two questions with two answers. A replica that waits for another one's migrations, or runs them, is alive: who
restarts it then only makes it begin anew. It is not ready, and says whom it waits for.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sharedvol.errors import DatabaseError, ManifestError, SharedVolError
from sharedvol.migrations.coordinator import MigrationCoordinator
from sharedvol.migrations.status import MigrationStatus

LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"
_PATIENCE_SECONDS: Final = 5

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Report:
    """An answer to a health check.

    Attributes:
        code: the HTTP status: 200, or 503.
        body: what to send as JSON.
    """

    code: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the answer is yes."""
        return self.code == 200


class Health:
    """Liveness and readiness of a replica whose start-up runs migrations.

    ::

        coordinator = MigrationCoordinator("mysql://app@db/shop", "/app/migrations")
        health = Health(coordinator)
        threading.Thread(target=coordinator.run).start()
        health.ready()      # Report(code=503, body={'status': 'not_ready', 'reason': 'migrations_pending', ...})

    Args:
        coordinator: whose run, and whose database, it is about. It need not run in this process. None for a
            replica without migrations, which is always ready.
        max_age: seconds for which an answer of the database is used again, so that checks cannot load it.
    """

    def __init__(self, coordinator: MigrationCoordinator | None, *, max_age: float = 1.0) -> None:
        self._coordinator = coordinator
        self._max_age = max_age
        self._lock = threading.Lock()
        self._asked: tuple[float, Report] | None = None

    def live(self) -> Report:
        """Whether the process answers at all. Asks no database: a restart would not mend that."""
        return Report(200, {"status": "alive", "timestamp": _now()})

    def ready(self) -> Report:
        """Whether the replica may serve, as the R API's ``/health/ready`` says it.

        200 when the database answers, nothing is pending and the manifest is as expected. Else 503, with the
        ``reason`` ``database_unavailable``, ``migration_error`` or ``migrations_pending``. The other fields are
        those of `MigrationStatus.as_dict`.
        """
        if self._coordinator is None:
            return _report(None, None, None)
        current = self._coordinator.current
        if current.state in ("waiting", "migrating"):
            return _report(current, "migrations_pending", "unknown")
        asked = self._asked
        if asked is not None and time.monotonic() - asked[0] <= self._max_age:
            return asked[1]
        if not self._lock.acquire(blocking=False):
            # Somebody asks already: a crowd of checks must not pile up behind a database that does not answer.
            if asked is not None:
                return asked[1]
            return _report(current, "database_unavailable", "unknown", "the database is being asked")
        try:
            report = self._ask(self._coordinator, current)
            self._asked = (time.monotonic(), report)
            return report
        finally:
            self._lock.release()

    def not_ready(self, reason: str, error: str | None = None) -> Report:
        """The answer of who knows by itself that it may not serve. Asks nobody.

        Args:
            reason: a word for programs, such as ``draining``.
            error: the same for people.
        """
        if self._coordinator is None:
            return _report(None, reason, None, error)
        return _report(self._coordinator.current, reason, "unknown", error)

    def _ask(self, coordinator: MigrationCoordinator, current: MigrationStatus) -> Report:
        try:
            found = coordinator.status(patience=_PATIENCE_SECONDS)
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
        return _report(current if current.state == found.state else found, None, "connected")


def health_app(health: Health, *, live_path: str = LIVE_PATH, ready_path: str = READY_PATH) -> Any:
    """An ASGI application with the two answers, to mount or to serve on a port of its own.

    Args:
        health: what answers.
        live_path, ready_path: where.
    """
    answers = {live_path: health.live, ready_path: health.ready}

    async def app(scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the health checks speak HTTP, not {scope['type']}")
        answer = next((answers[path] for path in _paths(scope) if path in answers), None)
        if answer is None:
            report = Report(404, {"error": f"no such check: {live_path} or {ready_path}"})
        elif scope["method"] not in ("GET", "HEAD"):
            report = Report(405, {"error": "use GET"})
        elif answer == health.live:
            report = health.live()  # here and now, however busy the threads are
        else:
            report = await asyncio.to_thread(answer)  # the database is asked without stopping the event loop
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
    """Yield the request's path below the place of this application, by each reading of ``root_path``.

    By the ASGI specification the path includes ``root_path``. Where a proxy strips a prefix that only ``root_path``
    names, the path includes the rest of it, the mount point, or nothing of it.
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
) -> Report:
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
    return Report(200 if reason is None else 503, body)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
