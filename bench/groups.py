"""What can be measured, by name, in the order in which all of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bench import backlog, cache, following, latency, locks, logs, lost, migrations, moving, startup
from bench.figures import Measured

GROUPS: dict[str, Callable[[Path, float], Iterator[Measured]]] = {
    "uncontended": locks.uncontended,
    "fenced": locks.fenced,
    "contended": locks.contended,
    "crowds": locks.crowds,
    "beside": locks.beside_posix_waiters,
    "lost": lost.lost,
    "moving": moving.moving,
    "idle": moving.idle,
    "backlog": backlog.backlog,
    "latency": latency.latency,
    "following": following.following,
    "http": following.http_cost,
    "cache": cache.cache,
    "splitter": migrations.splitter,
    "replicas": migrations.replicas,
    "startup": startup.startup,
    "logs": logs.logs,
}
