"""What the environment says, read once at the start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url

DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}


@dataclass(frozen=True)
class Settings:
    """Where things are, and how long things may take.

    Attributes:
        database: with its password. Its text hides it: print the object without fear.
        spool: what the sidecar collects from; each replica writes below a directory of its own.
        cache: shared by the replicas.
        data: reference data, mounted read-only.
        drain_seconds: from SIGTERM, while the load balancer learns that this replica goes, to the end of accepting.
        lock_timeout: seconds to wait for another replica's migrations. Health checks must give more than that.
        connections: database connections of one process at most. One per order under way; times processes times
            replicas it must stay below the server's ``max_connections``.
    """

    database: URL
    spool: Path
    cache: Path
    data: Path
    drain_seconds: float
    lock_timeout: float
    connections: int

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings of an environment.

        Raises:
            KeyError: DATABASE_URL is missing.
        """
        return cls(
            database=_database(environment),
            spool=Path(environment.get("SPOOL_DIR", "/shared/spool")),
            cache=Path(environment.get("CACHE_DIR", "/cache")),
            data=Path(environment.get("DATA_DIR", "/data")),
            drain_seconds=float(environment.get("DRAIN_SECONDS", "5")),
            lock_timeout=float(environment.get("LOCK_TIMEOUT", "100")),
            connections=int(environment.get("DATABASE_CONNECTIONS", "10")),
        )


def _database(environment: Mapping[str, str]) -> URL:
    """The URL, and the password from a secret's file or a variable: a URL ends up in logs, a secret does not."""
    url = make_url(environment["DATABASE_URL"])
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if secret := environment.get("SHAREDVOL_DATABASE_PASSWORD_FILE"):
        return url.set(password=Path(secret).read_text().rstrip("\r\n"))
    if password := environment.get("SHAREDVOL_DATABASE_PASSWORD"):
        return url.set(password=password)
    return url
