"""The work: an order becomes a row in the database and a result on the shared volume, once."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from sharedvol import container_id, publish, unique_path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A finished order.

    Attributes:
        id: the client's own name for it.
        replica: who did it.
        total: the result.
        file: the name of the published result, which the sidecar keeps.
    """

    id: str
    replica: str
    total: float
    file: str


class Jobs:
    """The orders.

    Args:
        engine: the database.
        spool: results are published in ``<spool>/<container>/results``.
    """

    def __init__(self, engine: Engine, spool: Path) -> None:
        self._engine = engine
        self._spool = spool

    def put(self, job_id: str, numbers: list[float], seconds: float) -> tuple[Job, bool]:
        """Do a job, unless it is done: whoever asks again, a client or a load balancer, gets the same answer.

        Args:
            job_id: the client's name for it.
            numbers: to add.
            seconds: how long the work takes, in this example.

        Returns:
            The job, and whether it was done by this call.
        """
        done = self.find(job_id)
        if done is None:
            try:
                return self._do(job_id, numbers, seconds), True
            except IntegrityError:  # another one was at it, maybe in another replica, and the INSERT waited for its end
                done = self.find(job_id)
                if done is None:
                    raise
        return done, False

    def _do(self, job_id: str, numbers: list[float], seconds: float) -> Job:
        """Claim the job by its row, work, publish, and only then commit.

        The row is the truth. When this replica is killed, the server rolls it back and another one can do the job; the
        file that was published meanwhile is then collected as well, but no row names it.
        """
        _log.info("job %s begins", job_id)
        replica = container_id()
        with self._engine.begin() as transaction:
            transaction.execute(
                text("INSERT INTO jobs (id, replica) VALUES (:id, :replica)"), {"id": job_id, "replica": replica}
            )
            time.sleep(seconds)
            results = self._spool / replica / "results"
            results.mkdir(parents=True, exist_ok=True)  # the sidecar removes what a dead replica left empty
            path = unique_path(results, f"job_{job_id}.json")
            job = Job(job_id, replica, sum(numbers), path.name)
            with publish(path) as file:
                json.dump(asdict(job), file)
            transaction.execute(
                text("UPDATE jobs SET total = :total, file = :file WHERE id = :id"),
                {"total": job.total, "file": job.file, "id": job.id},
            )
        _log.info("job %s done", job_id)
        return job

    def find(self, job_id: str) -> Job | None:
        """A finished job."""
        with self._engine.connect() as connection:
            return _find(connection, job_id)

    def report(self, day: date) -> dict[str, object]:
        """What was done on a day."""
        with self._engine.connect() as connection:
            found = connection.execute(
                text("SELECT COUNT(*), COALESCE(SUM(total), 0) FROM jobs WHERE created >= :day AND created < :next"),
                {"day": day.isoformat(), "next": (day + timedelta(days=1)).isoformat()},
            ).one()
        return {"day": day.isoformat(), "jobs": int(found[0]), "total": float(found[1]), "by": container_id()}


def _find(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(
        text("SELECT id, replica, total, file FROM jobs WHERE id = :id AND file IS NOT NULL"), {"id": job_id}
    ).one_or_none()
    return None if row is None else Job(*row)
