"""The holder of a lock: the fields that all engines have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sharedvol.text import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The holder of a lock. Whether there is one is certain, because the kernel or the server reports it.

    The fields are what the holder wrote about itself. They are None or empty if it wrote nothing, or nothing valid.

    Attributes:
        replica: the container's name, as `sharedvol.container_id` gives it.
        pid: the process, in its own PID namespace.
        worker: the process's token, as `sharedvol.worker_token` gives it.
        purpose: what the lock is held for. It may contain anything, including control characters.
        since: when the holder got the lock, in UTC, by the clock of its machine. For display only.
        token: the fencing token.
    """

    replica: str | None = None
    pid: int | None = None
    worker: str | None = None
    purpose: str = ""
    since: datetime | None = None
    token: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with the time as text."""
        return {**asdict(self), "since": self.since.isoformat() if self.since else None}


def described(who: str, holder: Holder) -> str:
    """Return ``who`` for a message, with the fields of the holder, escaped for a terminal."""
    if holder.replica:
        who += f", replica {shown(holder.replica)}"
    if holder.pid is not None:
        who += f", process {holder.pid}"
    return who + (f', for "{shown(holder.purpose)}"' if holder.purpose else "")
